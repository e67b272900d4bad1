"""NetworkPolicies become what their documentation says, by each kind of selector, block and port."""

from typing import Any

import pytest
import yaml

from tests.cluster.policies import Isolation, World, isolations, passes, script

_FAR = "203.0.113.7"


def _pod(name: str, address: str, namespace: str, *, ports: str = "", phase: str = "Running") -> dict[str, Any]:
    return {
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "tier": namespace}},
        "spec": {"containers": [{"name": name, "ports": yaml.safe_load(ports or "[]")}]},
        "status": {"podIP": address, "phase": phase},
    }


_NAMESPACES = [
    {"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}} for name in ("mesh", "other")
]
_PODS = [
    _pod("web", "10.0.0.1", "mesh"),
    _pod("store", "10.0.0.2", "mesh", ports="[{name: sql, containerPort: 5432}]"),
    _pod("old", "10.0.0.3", "mesh", ports="[{name: sql, containerPort: 3306}]"),
    _pod("web", "10.0.1.1", "other"),
    _pod("done", "10.0.1.2", "other", phase="Succeeded"),
    _pod("young", "", "mesh"),
]
_WEB, _STORE, _OLD, _STRANGER = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.1.1"


def _isolated(*specs: str) -> list[Isolation]:
    policies = [{"metadata": {"namespace": "mesh"}, "spec": yaml.safe_load(spec)} for spec in specs]
    return isolations(policies, World.of(_PODS, _NAMESPACES))


def _into_store(*rules: str) -> str:
    return f"{{podSelector: {{matchLabels: {{app: store}}}}, policyTypes: [Ingress], ingress: [{', '.join(rules)}]}}"


def _out_of_web(*rules: str) -> str:
    return f"{{podSelector: {{matchLabels: {{app: web}}}}, policyTypes: [Egress], egress: [{', '.join(rules)}]}}"


_DENY = "{podSelector: {}, policyTypes: [Ingress, Egress]}"
_OTHER = "namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: other}}"
_NOT_MESH = (
    "namespaceSelector: {matchExpressions: [{key: kubernetes.io/metadata.name, operator: NotIn, values: [mesh]}]}"
)
_NOBODY = "podSelector: {matchLabels: {app: nobody}}"
_FROM_OURS = _into_store("{from: [{podSelector: {}}]}")
_SQL_IN = _into_store("{ports: [{port: sql}]}")
_SQL_OUT = _out_of_web("{to: [{podSelector: {}}], ports: [{port: sql}]}")
_PUBLIC = _out_of_web("{to: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.0.0.0/8]}}]}")


@pytest.mark.parametrize(
    ("specs", "source", "target", "port", "passing"),
    [
        pytest.param([], _STRANGER, _STORE, 5432, True, id="no policy: open"),
        pytest.param([_DENY], _WEB, _STORE, 5432, False, id="selected, no rule: closed"),
        pytest.param([_DENY], _STRANGER, _STORE, 5432, False, id="closed to other namespaces"),
        pytest.param([_DENY], _WEB, _FAR, 443, False, id="closed to the world"),
        pytest.param([_DENY], _WEB, _WEB, 80, True, id="itself"),
        pytest.param([_DENY], _STRANGER, _FAR, 443, True, id="a policy is its namespace's"),
        pytest.param([_into_store()], _STORE, _FAR, 443, True, id="closed in one direction alone"),
        pytest.param([_into_store("{}")], _STRANGER, _STORE, 1, True, id="an empty rule: all"),
        pytest.param([_FROM_OURS], _WEB, _STORE, 5432, True, id="podSelector: Pods of its namespace"),
        pytest.param([_FROM_OURS], _STRANGER, _STORE, 5432, False, id="and of no other"),
        pytest.param(
            [_into_store(f"{{from: [{{{_OTHER}}}]}}")], _STRANGER, _STORE, 1, True, id="namespaceSelector: all its Pods"
        ),
        pytest.param(
            [_into_store(f"{{from: [{{{_OTHER}, {_NOBODY}}}]}}")],
            *(_STRANGER, _STORE, 5432, False),
            id="both selectors in one peer: both must take it",
        ),
        pytest.param(
            [_into_store(f"{{from: [{{{_OTHER}}}, {{{_NOBODY}}}]}}")],
            *(_STRANGER, _STORE, 5432, True),
            id="two peers: either",
        ),
        pytest.param([_into_store(f"{{from: [{{{_NOT_MESH}}}]}}")], _STRANGER, _STORE, 1, True, id="an expression"),
        pytest.param([_into_store(f"{{from: [{{{_NOT_MESH}}}]}}")], _WEB, _STORE, 1, False, id="what it leaves out"),
        pytest.param([_SQL_IN], _WEB, _STORE, 5432, True, id="a name in: its own port"),
        pytest.param([_SQL_IN], _WEB, _STORE, 3306, False, id="and no other"),
        pytest.param([_SQL_OUT], _WEB, _OLD, 3306, True, id="a name out: the called Pod's port"),
        pytest.param([_SQL_OUT], _WEB, _STORE, 3306, False, id="and not another Pod's"),
        pytest.param([_out_of_web("{ports: [{port: 80, endPort: 90}]}")], _WEB, _FAR, 85, True, id="a range"),
        pytest.param([_out_of_web("{ports: [{port: 80, protocol: UDP}]}")], _WEB, _FAR, 80, False, id="a protocol"),
        pytest.param([_PUBLIC], _WEB, _FAR, 443, True, id="a block"),
        pytest.param([_PUBLIC], _WEB, _STORE, 443, False, id="what a block excepts"),
        pytest.param([_DENY, _into_store("{}")], _WEB, _STORE, 5432, False, id="both ends must allow it"),
        pytest.param([_DENY, _into_store("{}"), _out_of_web("{}")], _WEB, _STORE, 1, True, id="policies add up"),
    ],
)
def test_a_policy_lets_pass_what_it_says(
    specs: list[str], source: str, target: str, port: int, *, passing: bool
) -> None:
    """Each kind of selector, block and port counts as the API's reference has it."""
    assert passes(_isolated(*specs), source, target, port) is passing


def test_rules_name_no_pod_that_is_not_there() -> None:
    """A Pod that has ended, or has no address yet, is in no rule: its address may be another's."""
    text = script(
        _isolated(_DENY, "{podSelector: {}, policyTypes: [Ingress], ingress: [{from: [{namespaceSelector: {}}]}]}")
    )
    assert _STRANGER in text
    assert "10.0.1.2" not in text
    assert "jump in- " not in text
