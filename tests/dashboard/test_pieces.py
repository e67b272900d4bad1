"""What the dashboard is made of: rates and quantiles from a metrics page, logs read from where one was, masks."""

import json
from pathlib import Path

import pytest
import yaml

from cli.dashboard.logs import parse, tail
from cli.dashboard.masking import MASK, Masker
from cli.dashboard.metrics import Series, quantile, read

_CALL = 'method="/gaggle.task.v1.TaskService/GetTask"'


def _page(calls: int, failed: int, cpu: float = 1.0) -> str:
    watch = 'method="/gaggle.audit.v1.AuditService/WatchEvents"'
    return f"""# HELP gaggle_call_seconds Calls served
# TYPE gaggle_call_seconds histogram
gaggle_call_seconds_bucket{{code="OK",le="0.01",{_CALL}}} {calls}
gaggle_call_seconds_bucket{{code="OK",le="0.02",{_CALL}}} {calls * 2}
gaggle_call_seconds_bucket{{code="OK",le="+Inf",{_CALL}}} {calls * 2}
gaggle_call_seconds_count{{code="OK",{_CALL}}} {calls * 2}
gaggle_call_seconds_count{{code="NOT_FOUND",{_CALL}}} 5.0
gaggle_call_seconds_count{{code="UNAVAILABLE",{_CALL}}} {failed}
gaggle_call_seconds_bucket{{code="OK",le="0.01",{watch}}} 0.0
gaggle_call_seconds_bucket{{code="OK",le="+Inf",{watch}}} 900.0
gaggle_call_seconds_count{{code="OK",method="/grpc.health.v1.Health/Check"}} 1e+06
gaggle_call_seconds_created{{code="OK",{_CALL}}} 1.7e+09
gaggle_outbox_pending 7.0
gaggle_events_received_total{{outcome="RETRY",topic="task-events"}} 2.0
gaggle_events_received_total{{outcome="SUCCESS",topic="task-events"}} 10.0
gaggle_agent_tokens_total{{kind="input",model="one"}} 3.0
gaggle_agent_tokens_total{{kind="input",model="two"}} 4.0
process_cpu_seconds_total {cpu}
"""


def test_rates_and_quantiles_are_of_the_last_half_minute() -> None:
    """What the page shows is what happened lately, of calls that people made, and not since the process began."""
    series = Series()
    series.add(read(_page(1000, 0, 1.0), 100.0))
    series.add(read(_page(1050, 20, 2.0), 110.0))

    shown = series.shown()

    # 100 that succeeded and 20 that failed, in ten seconds.
    assert (shown["calls_per_second"], shown["faults_per_second"], shown["cpu"]) == (12.0, 2.0, 0.1)
    assert shown["p50_ms"] == 10.0
    assert shown["p99_ms"] == pytest.approx(19.8)
    assert (shown["outbox_pending"], shown["refused_events"], shown["tokens"]) == (7.0, 2.0, {"input": 7.0})
    assert shown["lag_p99_ms"] is None
    assert shown["rates"] == [12.0]


def test_a_process_that_begins_anew_has_no_negative_rates() -> None:
    """After a restart counters begin at nothing: what was before is forgotten."""
    series = Series()
    series.add(read(_page(1000, 0, 9.0), 100.0))
    series.add(read(_page(10, 0, 0.5), 102.0))
    series.add(read(_page(20, 0, 0.6), 104.0))

    assert series.shown()["calls_per_second"] == 10.0


@pytest.mark.parametrize(
    ("buckets", "q", "milliseconds"),
    [
        ({}, 0.5, None),
        ({1.0: 0.0, float("inf"): 0.0}, 0.5, None),
        ({0.1: 10.0, 0.2: 10.0, float("inf"): 10.0}, 0.5, 50.0),
        ({0.1: 0.0, 0.2: 10.0, float("inf"): 10.0}, 0.5, 150.0),
        ({0.1: 0.0, float("inf"): 10.0}, 0.99, 100.0),
    ],
    ids=["no buckets", "no calls", "in the first bucket", "in the second", "beyond the last bound"],
)
def test_a_quantile_is_prometheuss(buckets: dict[float, float], q: float, milliseconds: float | None) -> None:
    """The page and Grafana say the same of the same histogram."""
    assert quantile(buckets, q) == milliseconds


def test_a_log_is_read_on_from_where_one_was(tmp_path: Path) -> None:
    """No line is shown twice or left out, half a line waits for its end, and a log that was cut is read anew."""
    log = tmp_path / "task.log"
    log.write_text('{"event": "one", "level": "info"}\n{"event": "tw')

    first = tail(log, after=None)
    with log.open("a") as file:
        file.write('o", "level": "error"}\nnot JSON\n')
    second = tail(log, after=first["position"])
    third = tail(log, after=second["position"])
    log.write_text('{"event": "anew"}\n')
    fourth = tail(log, after=third["position"])

    assert [one["event"] for one in first["lines"]] == ["one"]
    assert [one["event"] for one in second["lines"]] == ["two", "not JSON"]
    assert third["lines"] == []
    assert [one["event"] for one in fourth["lines"]] == ["anew"]


def test_a_long_log_is_read_from_a_whole_line(tmp_path: Path) -> None:
    """Of a log of many megabytes its end is shown, beginning with a whole line, found by word and by level."""
    log = tmp_path / "task.log"
    lines = [json.dumps({"event": f"line {n}", "level": "info", "pad": "x" * 200}) for n in range(5_000)]
    log.write_text("\n".join([*lines, json.dumps({"event": "bad", "level": "error"}), ""]))

    whole = tail(log, after=None)["lines"]
    assert len(whole) == 500
    assert all(one["event"].startswith(("line ", "bad")) for one in whole)
    assert [one["event"] for one in tail(log, after=None, level="warning")["lines"]] == ["bad"]
    assert [one["event"] for one in tail(log, after=None, text="LINE 4999")["lines"]] == ["line 4999"]


def test_lines_of_services_and_of_sidecars_are_alike() -> None:
    """Services and daprd name time and text differently; the page does not."""
    ours = parse('{"event": "call", "level": "info", "timestamp": "2026-01-01T00:00:00Z", "ms": 1}')
    theirs = parse('{"msg": "loaded", "level": "info", "time": "2026-01-01T00:00:00Z", "scope": "dapr"}')

    assert (ours["event"], ours["time"], ours["fields"]) == ("call", "2026-01-01T00:00:00Z", {"ms": 1})
    assert (theirs["event"], theirs["time"], theirs["fields"]) == ("loaded", "2026-01-01T00:00:00Z", {"scope": "dapr"})


def test_secrets_are_masked_by_name_and_by_value() -> None:
    """A password is not shown where it stands under its name, nor where its value has got to; its reference is."""
    masker = Masker(
        {"redis-password": "hunter2hunter2", "kafka": {"KAFKA_PASSWORD": "s3cr3t-words"}, "token-jwks": "{}"}
    )
    component = {
        "spec": {
            "metadata": [
                {"name": "redisHost", "value": "127.0.0.1:6379"},
                {"name": "redisPassword", "value": "anything"},
                {"name": "url", "value": "amqp://u:s3cr3t-words@host"},
                {"name": "saslPassword", "secretKeyRef": {"name": "kafka", "key": "KAFKA_PASSWORD"}},
                {"name": "connectionString", "value": "postgres://u:p@h/d"},
            ]
        },
        "auth": {"secretStore": "secretstore"},
        "apiToken": "abc",
    }

    text = yaml.safe_dump(masker.document(component), allow_unicode=True)

    for secret in ("anything", "s3cr3t-words", "postgres://u:p", "abc"):
        assert secret not in text
    for kept in ("127.0.0.1:6379", "KAFKA_PASSWORD", "secretStore: secretstore", f"amqp://u:{MASK}@host"):
        assert kept in text
    assert masker.text("it said hunter2hunter2!") == f"it said {MASK}!"
