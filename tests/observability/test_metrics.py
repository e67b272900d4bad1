"""What Prometheus sees of a running mesh, and that dashboards and alert rules ask for nothing else."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from cli.binaries.build import Progress
from cli.binaries.prometheus import prometheus
from cli.observing.programs import CONFIGURATION
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified
from tests.observability.chatting import chat
from tests.observability.tracing import Trace
from tests.recipe.running import Cook
from tests.reminder.reminding import Reminding, ahead

_RULES = CONFIGURATION / "rules" / "gaggle.yml"
_RULE_TESTS = CONFIGURATION / "rules" / "gaggle_test.yml"
_DASHBOARDS = sorted((CONFIGURATION / "dashboards").glob("*.json"))
_OURS = re.compile(r"\b(?:gaggle|dapr|process)_[a-z_]+\b")
_RECORDED = re.compile(r"\bgaggle:[a-z0-9_:]+\b")
_WITHOUT = re.compile("fail|fault|given up|race|made good|Deliver|Cost|slowest", re.IGNORECASE)
"""Panels of what need not happen."""

_PARTS = ("_bucket", "_count", "_sum", "_total")
_RECIPE = "version: 1.0.0\ntitle: Measured\ndescription: Asks once\nprompt: say Done and measured\n"


def _dashboard_queries() -> Iterator[tuple[str, str]]:
    for path in _DASHBOARDS:
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                yield f"{path.stem}: {panel['title']}", target["expr"]


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(_RULES.read_text())["groups"] for rule in group["rules"]]


def _rule_queries() -> Iterator[tuple[str, str]]:
    for rule in _rules():
        yield str(rule.get("alert") or rule["record"]), rule["expr"]


def _concrete(query: str) -> str:
    """A dashboard's query as Grafana sends it."""
    return query.replace("$__rate_interval", "1m").replace("$service", ".*")


async def _ask(address: str, path: str, **parameters: str) -> Any:
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
        answer = await client.get(f"/api/v1/{path}", params=parameters, timeout=20)
    body = answer.json()
    assert body["status"] == "success", body
    return body["data"]


def test_the_rules_do_what_their_tests_say(progress: Progress) -> None:
    """Each alert fires when it should and not before: promtool runs the tests that lie beside the rules."""
    promtool = str(prometheus(progress).promtool)
    for arguments in (["check", "rules", str(_RULES)], ["test", "rules", str(_RULE_TESTS)]):
        result = subprocess.run(
            [promtool, *arguments], capture_output=True, text=True, check=False, cwd=_RULES.parent, timeout=60
        )
        assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_shown_to_fire() -> None:
    """No alert is without a test in which it fires, a text, and a severity."""
    fired = {
        one["alertname"]
        for test in yaml.safe_load(_RULE_TESTS.read_text())["tests"]
        for one in test["alert_rule_test"]
        if one["exp_alerts"]
    }
    alerts = [rule for rule in _rules() if "alert" in rule]

    assert {rule["alert"] for rule in alerts} == fired
    for rule in alerts:
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description"}


@pytest.mark.parametrize("name", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_the_configurations_are_prometheuss(progress: Progress, tmp_path: Path, name: str) -> None:
    """The configurations for one machine and for Kubernetes are such as Prometheus takes.

    Debian's is built without the discovery of Pods: the rest of that file is checked with files in its place.
    """
    text = (CONFIGURATION / name).read_text()
    files = "file_sd_configs:\n      - files: [targets/pods.json]"
    (tmp_path / name).write_text(text.replace("kubernetes_sd_configs:\n      - role: pod", files))
    shutil.copytree(CONFIGURATION / "rules", tmp_path / "rules")

    result = subprocess.run(
        [str(prometheus(progress).promtool), "check", "config", name],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        timeout=60,
    )

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", _DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_whole(path: Any) -> None:
    """Grafana can load it: ids are unique, panels lie beside each other, the data source is the one that is chosen."""
    dashboard = json.loads(path.read_text())
    panels = dashboard["panels"]

    assert dashboard["uid"] == path.stem
    assert len({one["id"] for one in panels}) == len(panels)
    assert {target["datasource"]["uid"] for one in panels for target in one["targets"]} == {"${datasource}"}
    taken: set[tuple[int, int]] = set()
    for one in panels:
        place = one["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, one["title"]
        taken |= cells


@pytest.mark.mesh
@pytest.mark.xdist_group("observed")
class TestMesh:
    """On the running mesh, scraped by a real Prometheus."""

    async def test_everything_is_scraped(self, observed: Mesh, scraped: str) -> None:
        """Prometheus finds every service, every sidecar and the control plane by the files that `gaggle up` writes."""
        wanted = len(observed.description.services)

        async def all_up() -> bool:
            answer = await _ask(scraped, "query", query="sum by (job) (up)")
            return {one["metric"]["job"]: int(one["value"][1]) for one in answer["result"]} == {
                "gaggle-services": wanted,
                "gaggle-sidecars": wanted,
                "gaggle-control-plane": 2,
            }

        await eventually(all_up, within=60, what="every target up")

    async def test_what_dashboards_and_rules_ask_for_is_exported(self, observed: Mesh, scraped: str, user: str) -> None:
        """Every metric that a panel or a rule names is one that the running mesh exports; every query is valid."""
        await _live(observed, user)
        queries = [*_dashboard_queries(), *_rule_queries()]
        recorded = {rule["record"] for rule in _rules() if "record" in rule}
        wanted = {name for _, query in queries for name in _OURS.findall(query)}
        assert {"gaggle_call_seconds_bucket", "gaggle_outbox_pending", "gaggle_agent_tokens_total"} <= wanted

        async def missing() -> set[str]:
            # With those that have no sample yet, since nothing has failed so far.
            known = set(await _ask(scraped, "metadata"))
            return {name for name in wanted if not {name, *_families(name)} & known}

        async def none_is_missing() -> bool:
            return not await missing()

        try:
            await eventually(none_is_missing, within=60, what="every metric")
        except AssertionError:
            assert await missing() == set()
            raise
        for where, query in queries:
            assert set(_RECORDED.findall(query)) <= recorded, where
            await _ask(scraped, "query", query=_concrete(query))

    async def test_the_panels_of_what_happens_show_it(self, observed: Mesh, scraped: str, user: str) -> None:
        """With a mesh at work no panel of calls, latency, state, event lag, outbox, reminders or tokens is empty."""
        await _live(observed, user)
        telling = [(where, query) for where, query in _dashboard_queries() if not _WITHOUT.search(where)]
        assert len(telling) > 30

        async def empty() -> list[str]:
            found = []
            for where, query in telling:
                if not (await _ask(scraped, "query", query=_concrete(query)))["result"]:
                    found.append(where)
            return found

        async def none_is_empty() -> bool:
            return not await empty()

        try:
            await eventually(none_is_empty, within=60, what="no empty panel")
        except AssertionError:
            assert await empty() == []
            raise


def _families(name: str) -> set[str]:
    """What metadata may call the family that a sample belongs to."""
    return {name.removesuffix(part) for part in _PARTS if name.endswith(part)}


async def _live(mesh: Mesh, user: str) -> None:
    """Something of everything: a task with a reminder that fires, a recipe that asks an agent, a notification."""
    async with (
        mesh.channel("reminder") as reminders,
        mesh.channel("task") as tasks,
        mesh.channel("recipe") as recipes,
        mesh.channel("notification") as inbox,
    ):
        await Reminding(mesh, reminders, tasks, user).task(ahead(3), 2, title="Measure")
        cook = Cook(recipes, mesh.metadata(user))
        await cook.ended(await cook.start(_RECIPE))
        await chat(mesh, user, Trace.begin(), 'tool remind {"title": "Measure again"}')
        await Notified(mesh, inbox, user).until(2, within=60.0)
