"""Policies as committed, against what the services' code does and what their access tables say."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.mesh.components import (
    SERVICE_CONFIGURATIONS,
    effective_component,
    effective_configuration,
    further_secrets,
    service_configuration,
    topic_scopes,
)
from cli.mesh.data import PROJECT_ROOT
from cli.mesh.sets import ComponentSet
from services.runtime import topics
from tests.secure.needs import APIS, CALLS, SECRETS, SERVICES, components_of, wiring_of

_SETS = sorted(path.name for path in (PROJECT_ROOT / "dapr-components").iterdir() if path.is_dir())


def _set(name: str) -> ComponentSet:
    return ComponentSet.load(PROJECT_ROOT / "dapr-components" / name)


def _pubsub(components: ComponentSet) -> dict[str, Any]:
    wanted = components.settings.get("GAGGLE_PUBSUB", "pubsub")
    (found,) = [one for one in components.components if one["metadata"]["name"] == wanted]
    return {item["name"]: item.get("value") for item in found["spec"]["metadata"]}


@pytest.mark.parametrize("service", SERVICES)
def test_access_policies_are_what_services_need(service: str) -> None:
    """Whoever calls a service is named with the methods that it calls; everybody and everything else is denied."""
    document = service_configuration(service)
    assert (SERVICE_CONFIGURATIONS / f"{service}.yaml").exists()
    assert document["metadata"]["name"] == service
    control = document["spec"]["accessControl"]
    assert control["defaultAction"] == "deny"
    allowed = {}
    for policy in control["policies"]:
        assert (policy["defaultAction"], policy["trustDomain"], policy["namespace"]) == ("deny", "public", "default")
        assert {one["action"] for one in policy["operations"]} == {"allow"}
        allowed[policy["appId"], service] = {one["name"].removeprefix("/") for one in policy["operations"]}
    assert allowed == {pair: methods for pair, methods in CALLS.items() if pair[1] == service}


@pytest.mark.parametrize("service", SERVICES)
async def test_access_policies_open_nothing_that_the_service_would_refuse(service: str) -> None:
    """Whom the sidecar lets in, the service's own table lets in, too; methods are the contracts'."""
    wiring = await wiring_of(service)
    tables = {one.service.full_name: one for one in wiring.servicers}
    for (caller, callee), methods in CALLS.items():
        for method in methods if callee == service else ():
            full_name, _, name = method.partition("/")
            exposed = tables[full_name]
            assert name in exposed.service.methods_by_name
            access = exposed.access.get(name, exposed.access.get("*"))
            assert access is not None
            # Search and filtered lists pass the user's own token on.
            assert caller in access.services or (access.users and caller == "conversation"), f"{caller} -> {method}"


@pytest.mark.parametrize("service", SERVICES)
def test_apis_and_secrets_are_what_services_need(service: str) -> None:
    """A service's sidecar offers it the APIs that it uses and the secrets that it reads, and no others."""
    spec = service_configuration(service)["spec"]
    rules = {(one["name"], one["protocol"]) for one in spec["api"]["allowed"]}
    by_http = {("metadata", "http")} | ({("invoke", "http")} if service == "auth" else set())
    assert rules == {(name, "grpc") for name in APIS[service] | {"metadata", "secrets"}} | by_http
    (scope,) = spec["secrets"]["scopes"]
    assert scope["defaultAccess"] == "deny"
    assert set(scope["allowedSecrets"]) == SECRETS[service]


@pytest.mark.parametrize("service", SERVICES)
async def test_topic_scopes_are_what_the_code_publishes_and_takes(service: str) -> None:
    """A service takes the topics that it subscribes to, and publishes those that its code names; nothing else."""
    wiring = await wiring_of(service)
    fields = _pubsub(_set("local"))
    published, taken = (
        topic_scopes(fields[f"{kind}Scopes"]).get(service, []) for kind in ("publishing", "subscription")
    )
    assert len(set(published)) == len(published)
    if not wiring.has_events:
        assert not wiring.subscriptions
        assert (published, taken) == ([], [])
        return
    subscribed = {one.topic for one in wiring.subscriptions if not one.pubsub or one.pubsub == "pubsub"}
    assert set(taken) == subscribed
    dead = {one.dead_letter_topic for one in wiring.subscriptions if one.dead_letter_topic}
    assert dead == ({topics.dead_letter_topic(service)} if subscribed else set())
    source = "".join(path.read_text() for path in (PROJECT_ROOT / "services" / service).rglob("*.py"))
    named = {getattr(topics, name) for name in re.findall(r"\btopics\.([A-Z_]+)\b", source)} - {
        topics.ALL_TOPICS,
        topics.SNAKE_CASE_TOPICS,
    }
    if service == "audit":
        # It publishes for other applications what no service of ours tells of its own state.
        from services.audit.domain import OPEN_TOPICS

        assert set(published) == OPEN_TOPICS | {topics.USER_ERASURE_COMPLETED} | dead
        return
    # The shared part of erasure tells for those that use it.
    shared = {topics.USER_ERASURE_COMPLETED} if wiring.keeps_state else set()
    assert set(published) - dead - shared <= named
    assert named <= set(published) | subscribed


@pytest.mark.parametrize("name", _SETS)
def test_sets_differ_in_names_alone(name: str) -> None:
    """Every set scopes components, topics and calls as the default one does, beside the applications that it knows."""
    local, other = _set("local"), _set(name)
    named = {"statestore": "GAGGLE_STATESTORE", "pubsub": "GAGGLE_PUBSUB", "secretstore": "GAGGLE_SECRETSTORE"}
    named["reminder-sweep"] = "GAGGLE_SWEEP_BINDING"
    scopes = {one["metadata"]["name"]: set(one["scopes"]) for one in other.components}
    for component in local.components:
        own = component["metadata"]["name"]
        theirs = other.settings.get(named.get(own, ""), own)
        assert set(component["scopes"]) == scopes[theirs] & set(SERVICES), own
    renamed = {"task-events": "todo.tasks.events"} if name == "todo" else {}
    for field in ("publishingScopes", "subscriptionScopes"):
        expected = {
            app: {renamed.get(topic, topic) for topic in those}
            for app, those in topic_scopes(_pubsub(local)[field]).items()
        }
        assert {app: set(those) for app, those in topic_scopes(_pubsub(other)[field]).items()} == expected
    assert set(_pubsub(other)["protectedTopics"].replace(" ", "").split(",")) == set(topics.ALL_TOPICS) - _open_topics()
    (mine,), (theirs_,) = local.files["resiliency.yaml"], other.files["resiliency.yaml"]
    assert mine["spec"]["policies"] == theirs_["spec"]["policies"]
    assert mine["spec"]["targets"]["apps"] == theirs_["spec"]["targets"]["apps"]
    assert set(mine["scopes"]) == set(theirs_["scopes"]) & set(SERVICES)


def _open_topics() -> frozenset[str]:
    from services.audit.domain import OPEN_TOPICS

    return OPEN_TOPICS


@pytest.mark.parametrize("service", SERVICES)
async def test_component_scopes_are_what_services_need(service: str) -> None:
    """A service reaches the state store if it keeps state, the broker if it has events, and no one else's parts."""
    reached = {one["metadata"]["name"] for one in _set("local").components if service in one["scopes"]}
    assert reached == components_of(service)
    wiring = await wiring_of(service)
    assert wiring.keeps_state == ("statestore" in reached)
    assert wiring.has_events == ("pubsub" in reached)
    assert set(wiring.bindings) == reached & {"reminder-sweep"}


def test_retries_are_for_what_may_be_repeated() -> None:
    """A policy that repeats calls is only there for services none of whose methods changes anything."""
    (document,) = _set("local").files["resiliency.yaml"]
    retried = {app for app, one in document["spec"]["targets"]["apps"].items() if "retry" in one}
    assert retried == {"auth", "recurrence"}
    assert set(document["spec"]["targets"]["apps"]) == set(SERVICES)
    policy = document["spec"]["policies"]["retries"]["again"]
    assert (policy["policy"], policy["matching"]) == ("exponential", {"gRPCStatusCodes": "14"})
    stores = [one["metadata"]["name"] for one in _set("local").components if one["spec"]["type"].startswith("state.")]
    assert not set(stores) & set(document["spec"]["targets"]["components"])


def test_a_suffix_reaches_policies_topics_and_targets(tmp_path: Path) -> None:
    """A mesh with a suffix has its own policies: app ids carry it wherever they stand."""
    local = _set("local")
    (pubsub,) = local.files["pubsub.yaml"]
    effective = effective_component(pubsub, tmp_path, "-t1")
    fields = {item["name"]: item.get("value") for item in effective["spec"]["metadata"]}
    scopes = topic_scopes(fields["publishingScopes"])
    assert set(scopes) == {f"{service}-t1" for service in SERVICES if service not in {"auth", "sync"}}
    assert scopes["recurrence-t1"] == ["dead-letter.recurrence-t1"]
    (resiliency,) = local.files["resiliency.yaml"]
    targets = effective_component(resiliency, tmp_path, "-t1")["spec"]["targets"]
    assert set(targets["apps"]) == {f"{service}-t1" for service in SERVICES}
    assert targets["components"] == resiliency["spec"]["targets"]["components"]
    spec = _effective("conversation", suffix="-t1", closed=True)["spec"]
    assert {policy["appId"] for policy in spec["accessControl"]["policies"]} == {"agent-t1", "audit-t1", "recipe-t1"}


def _effective(service: str, **changes: Any) -> dict[str, Any]:
    shared = yaml.safe_load(_set("local").configuration.read_text())
    given: dict[str, Any] = {"secretstore": "s", "secret_names": {}, "further": [], "suffix": "", "closed": False}
    return effective_configuration(shared, service_configuration(service), **(given | changes))


def test_without_identities_nothing_is_decided_by_them() -> None:
    """A mesh without mTLS has no access control, which would refuse everybody; secrets are scoped all the same."""
    spec = _effective("task")["spec"]
    assert {"accessControl", "api"}.isdisjoint(spec)
    assert spec["secrets"]["scopes"][0]["defaultAccess"] == "deny"
    assert spec["tracing"]


def test_credentials_lie_in_the_secrets_of_the_set() -> None:
    """Where a set keeps several credentials in one secret, that one is allowed, to who needs one of them."""
    components = _set("kafka-cloud")
    spec = _effective("notification", secretstore=components.secretstore, secret_names=components.secret_names)["spec"]
    (scope,) = spec["secrets"]["scopes"]
    assert scope["storeName"] == "kubernetes-secrets"
    assert scope["allowedSecrets"] == ["backend-secrets", "service-key-notification", "token-jwks"]


def test_an_operators_own_names_are_allowed_to_who_uses_them() -> None:
    """Keys of further models are the agent's, extensions' secrets the extension service's; nobody else's."""
    secrets = {"extension-a": "1", "OTHER": "2"}
    endpoints = {"GAGGLE_MODEL_ENDPOINTS": '[{"name": "x", "secret": "MODEL_KEY"}, {"name": "y"}]'}
    assert further_secrets("extension", secrets, endpoints) == {"extension-a"}
    assert further_secrets("agent", secrets, endpoints) == {"MODEL_KEY", "OPENAI_API_KEY"}
    assert further_secrets("task", secrets, endpoints) == set()


def test_a_service_without_a_file_is_closed() -> None:
    """Whoever adds a service and forgets its policies has one that nobody can call."""
    document = service_configuration("unheard-of")
    assert document["spec"]["accessControl"] == {"defaultAction": "deny"}
    assert document["spec"]["secrets"]["scopes"][0]["allowedSecrets"] == ["service-key-unheard-of", "token-jwks"]


@pytest.mark.parametrize("name", [name for name in _SETS if name != "local"])
def test_every_secret_of_a_set_has_a_template(name: str) -> None:
    """Whatever key of a Kubernetes secret a set's components or settings name, deploy/secrets/ has a place for."""
    templates = {}
    for file in (PROJECT_ROOT / "deploy" / "secrets").glob("*.yaml"):
        document = yaml.safe_load(file.read_text())
        assert (document["kind"], document["metadata"]["name"]) == ("Secret", file.stem)
        templates[file.stem] = set(document["stringData"])
    components = _set(name)
    wanted = {(holder, key) for key, holder in components.secret_names.items()}
    for one in components.components:
        for item in one["spec"].get("metadata") or []:
            if reference := item.get("secretKeyRef"):
                wanted.add((reference["name"], reference["key"]))
    assert {(holder, key) for holder, key in wanted if key not in templates.get(holder, set())} == set()


def test_templates_hold_no_credentials() -> None:
    """What is committed is a form to fill in."""
    for file in (PROJECT_ROOT / "deploy" / "secrets").glob("*.yaml"):
        for key, value in yaml.safe_load(file.read_text())["stringData"].items():
            named_like_one = "password" in key.lower() or key == "OPENAI_API_KEY"
            assert not named_like_one or value in {"PASSWORD", ""}, key
