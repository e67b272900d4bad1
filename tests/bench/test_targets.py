"""Targets, computed from results."""

import json

import pytest

from bench.report import README, summary
from bench.targets import RESULTS, Check, Results, Row, checks, verdict


def row(case: str, system: str, *, callers: int = 1, history: int = 50, rate: float = 0.0, p50: float = 0.0) -> Row:
    """Make a line of latest.json."""
    return Row(case=case, system=system, callers=callers, history=history, per_second=rate, p50_ms=p50, p99_ms=p50 * 2)


def found(rows: list[Row], what: str) -> Check:
    """Give the one check of that name that is no goal."""
    (check,) = (one for one in checks(Results(rows)) if one.what == what and not one.goal)
    return check


@pytest.mark.parametrize(
    ("gaggle", "met"), [pytest.param(1.15, True, id="at the limit"), pytest.param(1.16, False, id="beyond it")]
)
def test_a_ratio_is_held_against_its_limit(gaggle: float, met: bool) -> None:  # noqa: FBT001 - the expectation
    """A strong read may cost 1.15 times the relay, and no more."""
    check = found(
        [row("list50", "gaggle", p50=gaggle), row("list50", "hop-relay", p50=1.0)], "list50, 1 caller: p50 / relay"
    )
    assert check.value == pytest.approx(gaggle)
    assert check.met is met


def test_rates_are_compared_at_32_callers() -> None:
    """Rates come from the rows of 32 callers alone."""
    rows = [
        row("append1", "gaggle", rate=900.0),
        row("append1", "gaggle", callers=32, rate=500.0),
        row("append1", "openai-agents-dapr", callers=32, rate=400.0),
    ]
    check = found(rows, "append1, 32 callers: rate / DaprSession")
    assert check.value == pytest.approx(1.25)
    assert check.met


def test_a_known_read_is_held_against_the_fastest_peer() -> None:
    """Below every peer means below the best of them; the floor is none."""
    rows = [
        row("list50", "gaggle-known", p50=0.8),
        row("list50", "asyncpg", p50=0.1),
        row("list50", "dapr-http-json", p50=3.0),
        row("list50", "openai-agents-dapr", p50=1.0),
        row("list50", "openai-agents-sqlalchemy", p50=1.6),
        row("list50", "langgraph-postgres", p50=2.0),
    ]
    check = found(rows, "list50 of a known sequence, 1 caller: p50 / fastest peer")
    assert check.value == pytest.approx(0.8)


def test_two_steps_in_turn() -> None:
    """A hop of 4,000 a second and a read of 4,000 a second make 2,000 a second together."""
    rows = [
        row("list50", "gaggle", callers=32, rate=1700.0),
        row("list50", "hop-empty", callers=32, rate=4000.0),
        row("list50", "daprd-raw", callers=32, rate=4000.0),
    ]
    (check,) = (one for one in checks(Results(rows)) if "in turn" in one.what)
    assert check.value == pytest.approx(0.85)
    assert check.met


def test_what_was_not_measured_is_not_judged() -> None:
    """Without its rows a target is neither met nor missed."""
    assert {verdict(one) for one in checks(Results([]))} == {"not measured"}


def test_the_recorded_results_have_every_key() -> None:
    """latest.json is a list of rows that other programs can read by these keys."""
    for one in json.loads(RESULTS.read_text()):
        assert set(one) - {"spread"} == {"case", "system", "callers", "history", "per_second", "p50_ms", "p99_ms"}


def test_the_readme_shows_the_recorded_results() -> None:
    """README's table is that of latest.json."""
    assert f"<!-- bench -->\n{summary(json.loads(RESULTS.read_text()))}<!-- /bench -->" in README.read_text()
