"""Gaggle by its own chart on a real Kubernetes and Dapr control plane; the tests are one story, in their order."""

import contextlib
import json
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, Self

import grpc
import pytest
import yaml
from cryptography import x509

from cli.binaries.cluster import KUBERNETES_VERSION
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.notification.v1 import notification_service_pb2, notification_service_pb2_grpc
from gaggle.recipe.v1 import (
    execution_pb2,
    execution_service_pb2,
    execution_service_pb2_grpc,
    recipe_service_pb2,
    recipe_service_pb2_grpc,
)
from gaggle.task.v1 import task_service_pb2, task_service_pb2_grpc
from tests.cluster.calls import NAMESPACE, PORT, RELEASE, eventually, running_pods
from tests.cluster.conftest import CHART, SERVICES, Installed
from tests.cluster.control import PROXY_PORT
from tests.cluster.network import API_SERVICE, HOST
from tests.cluster.reach import OUTSIDE_PORT, PRIVATE, PUBLIC, hosts_outside, pod_elsewhere, policies_of, reached
from tests.cluster.stores import KAFKA_PORT
from tests.conversation.talking import text_message

pytestmark = pytest.mark.timeout(1200)

_VALUES = ("-f", str(CHART / "values-local.yaml"))
_REMINDER_SECONDS = 15
_WAITING = 40
_WAITING_EACH = 5
_APP_ID = "conversation"
_STUBS = conversation_service_pb2_grpc.ConversationServiceStub
_READ = "/gaggle.conversation.v1.ConversationService/GetConversation"


@pytest.fixture(scope="module")
def mesh(installed: Installed) -> Installed:
    """`helm install`, which comes back when the migrations are done and every Pod is ready."""
    said = installed.cluster.helm(
        *("install", RELEASE, str(CHART), "--namespace", NAMESPACE, *_VALUES, "--wait", "--timeout=12m")
    )
    assert f"{RELEASE} in {NAMESPACE}" in said
    return installed


def test_objects_of_the_release(mesh: Installed) -> None:
    """Each service has its Deployment, Service, ServiceAccount, Role and Configuration; components lie beside them."""
    shown = mesh.cluster.kubectl(
        "get",
        "deployments,pods,services,serviceaccounts,roles,networkpolicies,components,configurations,resiliencies",
        "-n",
        NAMESPACE,
        "-o",
        "name",
    )
    print(shown)  # noqa: T201 -- the list is what a person runs this for (`-rA` shows it)
    objects = shown.split()
    for service in SERVICES:
        for kind in ("deployment.apps", "service", "serviceaccount"):
            assert f"{kind}/{RELEASE}-{service}" in objects
        assert f"configuration.dapr.io/gaggle-{service}" in objects
        # Made by Dapr's operator, which saw the annotations: the name that other sidecars call.
        assert f"service/{service}-dapr" in objects
    assert "component.dapr.io/kafka-pubsub" in objects
    assert "resiliency.dapr.io/resiliency" in objects


@pytest.mark.parametrize("service", SERVICES)
def test_a_pod_carries_its_sidecar_with_our_settings(mesh: Installed, service: str) -> None:
    """Each Pod that a Deployment became was given daprd, with the arguments that the chart's annotations ask for."""
    (pod,) = running_pods(mesh.cluster, service)
    sidecars = [one for one in pod["spec"]["containers"] if one["name"] == "daprd"]
    assert len(sidecars) == 1, pod["spec"]["containers"]
    (sidecar,) = sidecars
    print(pod["metadata"]["name"], *sidecar["args"])  # noqa: T201 -- as above
    arguments = _arguments(sidecar["args"])
    wanted = {
        "--app-id": service,
        "--app-port": "50051",
        "--app-protocol": "grpc",
        "--config": f"gaggle-{service}",
        "--mode": "kubernetes",
        "--max-body-size": "16Mi",
        "--dapr-graceful-shutdown-seconds": "10",
        "--dapr-block-shutdown-duration": "10s",
        "--enable-api-logging": "false",
        "--enable-app-health-check": "",
        "--app-health-probe-interval": "2",
        "--app-health-threshold": "3",
        "--log-as-json": "",
        "--enable-mtls": "",
        "--sentry-address": "dapr-sentry.dapr-system.svc.cluster.local:443",
    }
    assert {name: arguments.get(name) for name in wanted} == wanted
    secrets = {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"]
        for entry in sidecar["env"]
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert secrets == {"APP_API_TOKEN": f"app-token-{service}", "DAPR_API_TOKEN": f"dapr-token-{service}"}
    assert pod["status"]["phase"] == "Running"
    assert all(status["ready"] for status in pod["status"]["containerStatuses"])


def _arguments(words: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    name = ""
    for word in words[1:]:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            found[name] = value
        else:
            found[name] = word
    return found


def test_a_conversation_passes_through_the_mesh(mesh: Installed) -> None:
    """What a user says is kept, told on Kafka, logged by audit, read back by audit through two sidecars, and found."""
    user, conversation = _user(), f"c-{uuid.uuid4().hex[:8]}"
    _converse(mesh, user, conversation, "a heron by the river")
    listed = mesh.calls.service(
        "conversation",
        _STUBS,
        "ListMessages",
        conversation_service_pb2.ListMessagesRequest(conversation_id=conversation),
        user,
    )
    assert [one.content[0].text.text for one in listed.messages] == ["a heron by the river"]

    def logged() -> list[str]:
        asked = audit_service_pb2.ListEventsRequest(
            filter=audit_service_pb2.EventFilter(entity_id=conversation), page_size=50
        )
        answer = mesh.calls.service("audit", audit_service_pb2_grpc.AuditServiceStub, "ListEvents", asked, user)
        types = [one.event.event_type for one in answer.entries]
        return types if len(types) > 1 else []

    assert "goose.conversation.created" in eventually("the log has the conversation", logged)

    def found() -> bool:
        # conversation asks audit, which had to fetch the text from conversation before: both by their sidecars.
        asked = conversation_service_pb2.SearchMessagesRequest(query="heron")
        answer = mesh.calls.service("conversation", _STUBS, "SearchMessages", asked, user)
        return any(conversation in str(hit) for hit in answer.hits)

    eventually("the search finds it", found)


def test_a_reminder_fires(mesh: Installed) -> None:
    """A task's reminder is set through the sidecars, fired by Dapr's scheduler, and told in the inbox."""
    user = _user()
    request = task_service_pb2.CreateTaskRequest(title="Water the plants")
    request.due_time.FromSeconds(int(time.time()) + _REMINDER_SECONDS)
    request.reminder_offsets.add()
    mesh.calls.service("task", task_service_pb2_grpc.TaskServiceStub, "CreateTask", request, user)

    def told() -> bool:
        answer = mesh.calls.service(
            "notification",
            notification_service_pb2_grpc.NotificationServiceStub,
            "ListNotifications",
            notification_service_pb2.ListNotificationsRequest(),
            user,
        )
        return any("Water the plants" in str(one) for one in answer.notifications)

    eventually("the inbox has it", told)


def test_a_recipe_is_run(mesh: Installed) -> None:
    """A workflow asks the agent, and that the conversation service, by their sidecars, and ends with the answer."""
    user, recipes = _user(), recipe_service_pb2_grpc.RecipeServiceStub
    executions = execution_service_pb2_grpc.ExecutionServiceStub
    content = "title: A heron\ndescription: By the river\nprompt: say a heron\n"
    file = recipe_service_pb2.ImportRecipeRequest(content=content)
    recipe = mesh.calls.service("recipe", recipes, "ImportRecipe", file, user).recipe
    start = execution_service_pb2.StartExecutionRequest(recipe_id=recipe.id)
    started = mesh.calls.service("recipe", executions, "StartExecution", start, user)
    request = execution_service_pb2.GetExecutionRequest(execution_id=started.execution_id)

    def ended() -> Any:
        execution = mesh.calls.service("recipe", executions, "GetExecution", request, user).execution
        return execution if execution.status >= execution_pb2.EXECUTION_STATUS_COMPLETED else None

    execution = eventually("the recipe is run", ended)
    assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution


def test_sidecars_speak_mutual_tls(mesh: Installed) -> None:
    """A sidecar's port to the others shows an identity of this namespace, and takes no caller without one."""
    (pod,) = running_pods(mesh.cluster, "conversation")
    address = (pod["status"]["podIP"], 50002)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(address, timeout=10) as raw, context.wrap_socket(raw) as encrypted:
        shown = encrypted.getpeercert(binary_form=True)
        assert shown is not None
        with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
            encrypted.recv(1)
    names = x509.load_der_x509_certificate(shown).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    identities = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    assert identities == [f"spiffe://public/ns/{NAMESPACE}/conversation"]
    plain = grpc.insecure_channel(f"{address[0]}:{address[1]}", options=[("grpc.enable_http_proxy", 0)])
    asked = conversation_service_pb2.GetConversationRequest(conversation_id="any")
    with plain, pytest.raises(grpc.RpcError) as refused:
        _STUBS(plain).GetConversation(asked, metadata=(("dapr-app-id", _APP_ID),), timeout=5)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_access_is_denied_but_where_it_is_granted(mesh: Installed) -> None:
    """audit's sidecar may ask conversation for a conversation; notification's may not, nor conversation's own."""
    user, conversation = _user(), f"c-{uuid.uuid4().hex[:8]}"
    _converse(mesh, user, conversation, "for whom it may concern")
    asked = conversation_service_pb2.GetConversationRequest(conversation_id=conversation)
    code, _ = mesh.calls.through("audit", _APP_ID, _READ, asked, user)
    assert code == "OK"
    for caller in ("notification", "conversation"):
        code, why = mesh.calls.through(caller, _APP_ID, _READ, asked, user)
        assert (code, "access control policy has denied access" in why) == ("PERMISSION_DENIED", True), (caller, why)
    written = "/gaggle.conversation.v1.ConversationService/DeleteConversation"
    request = conversation_service_pb2.DeleteConversationRequest(conversation_id=conversation)
    code, why = mesh.calls.through("audit", _APP_ID, written, request, user)
    assert (code, "access control policy" in why) == ("PERMISSION_DENIED", True)


def test_secrets_are_kubernetes_own_and_scoped(mesh: Installed) -> None:
    """secretstores.kubernetes gives a service its key; another's is refused by Dapr's scopes and by RBAC."""
    store = "kubernetes-secrets"
    assert mesh.calls.secret("task", store, "service-key-task") == ("OK", "service-key-task")
    code, _ = mesh.calls.secret("task", store, "service-key-conversation")
    assert code == "PERMISSION_DENIED"
    code, _ = mesh.calls.secret("task", "kubernetes", "service-key-conversation")
    assert code == "PERMISSION_DENIED"
    account = f"system:serviceaccount:{NAMESPACE}:{RELEASE}-task"
    for name, allowed in (("service-key-task", "yes"), ("service-key-conversation", "no")):
        asked = ("auth", "can-i", "get", f"secrets/{name}", "-n", NAMESPACE, f"--as={account}")
        assert mesh.cluster.kubectl(*asked, check=False).split("\n")[0] == allowed


def test_policies_of_the_network_select_our_pods(mesh: Installed) -> None:
    """Every Pod of the release is under default deny, in both directions."""
    policies = {one["metadata"]["name"]: one["spec"] for one in mesh.cluster.objects("networkpolicies", NAMESPACE)}
    deny = policies[f"{RELEASE}-default-deny"]
    assert deny["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in deny
    labels = deny["podSelector"]["matchLabels"]
    for service in SERVICES:
        (pod,) = running_pods(mesh.cluster, service)
        assert labels.items() <= pod["metadata"]["labels"].items()


def test_strangers_reach_no_port_of_the_mesh(mesh: Installed) -> None:
    """A Pod of another namespace has no connection to service, sidecar or metrics, by Service or by address.

    Named in the values, it has one to what it is named for, and loses it with its name.
    """
    (task,) = running_pods(mesh.cluster, "task")
    by_service = (_cluster_ip(mesh, f"{RELEASE}-task"), PORT)
    service, sidecar, metrics, sidecar_metrics = ((task["status"]["podIP"], one) for one in (PORT, 50002, 9464, 9090))
    everything = {by_service, service, sidecar, metrics, sidecar_metrics}
    web = {"appId": "web", "namespace": "elsewhere", "may": {"task": ["/gaggle.task.v1.TaskService/*"]}}
    named = [f"--set-json=networkPolicy.clients=[{json.dumps(_of_namespace('elsewhere'))}]"]
    named.append(f"--set-json=clients=[{json.dumps(web)}]")
    with pod_elsewhere(mesh.cluster, "elsewhere", {"dapr.io/app-id": "web"}) as stranger:
        assert reached(stranger, everything) == set()
        with policies_of(mesh.cluster, str(CHART), _VALUES, *named):
            wanted = {by_service, service, sidecar}
            eventually("it is let in", lambda: reached(stranger, everything) == wanted)
            # The mesh's own are still let in beside it.
            assert reached(running_pods(mesh.cluster, "extension")[0], everything) == wanted
        eventually("it is kept out again", lambda: not reached(stranger, everything))
    # The injector's label is what such a client is known by.
    assert task["metadata"]["labels"]["dapr.io/app-id"] == "task"


def test_monitoring_reaches_metrics_alone(mesh: Installed) -> None:
    """Whoever scrapes has the metrics of service and sidecar, and no other port."""
    (task,) = running_pods(mesh.cluster, "task")
    service, sidecar, metrics, sidecar_metrics = ((task["status"]["podIP"], one) for one in (PORT, 50002, 9464, 9090))
    with pod_elsewhere(mesh.cluster, "monitoring") as scraper:
        assert reached(scraper, {service, sidecar, metrics, sidecar_metrics}) == {metrics, sidecar_metrics}


def test_a_pod_of_the_mesh_reaches_what_it_needs(mesh: Installed) -> None:
    """Out of a Pod there is a way to other sidecars, the stores and the API, and to no other port or host.

    Services that call the internet have that, too, but no private address. What values add is open to all.
    """
    (task,), (notification,) = (running_pods(mesh.cluster, one) for one in ("task", "notification"))
    there = running_pods(mesh.cluster, "audit")[0]["status"]["podIP"]
    needed = {(there, 50002), (HOST, 5432), (HOST, 9092), (API_SERVICE, 443)}
    public, private = (PUBLIC, OUTSIDE_PORT), (PRIVATE, OUTSIDE_PORT)
    # The node's kube-proxy listens there.
    others = {(there, 9464), (there, 9090), (HOST, PROXY_PORT), public, private}
    collector = {"to": [{"ipBlock": {"cidr": f"{PRIVATE}/32"}}], "ports": [{"port": OUTSIDE_PORT}]}
    with hosts_outside(mesh.cluster), pod_elsewhere(mesh.cluster, "elsewhere") as free:
        # What no policy selects reaches them: they listen, and there is a way.
        assert reached(free, {(HOST, PROXY_PORT), public, private}) == {(HOST, PROXY_PORT), public, private}
        assert reached(task, needed | others) == needed
        assert reached(notification, needed | others) == needed | {public}
        added = f"--set-json=networkPolicy.egress=[{json.dumps(collector)}]"
        with policies_of(mesh.cluster, str(CHART), _VALUES, added):
            eventually("it is let out", lambda: reached(task, needed | others) == needed | {private})
        eventually("it is kept in again", lambda: reached(task, needed | others) == needed)


def test_helm_test_asks_every_service(mesh: Installed) -> None:
    """`helm test` runs the hook, which asks each service by its Service whether it takes calls."""
    said = mesh.cluster.helm("test", RELEASE, "--namespace", NAMESPACE, "--timeout=2m")
    assert "Phase:          Succeeded" in said


def test_production_is_understood_by_the_api(mesh: Installed) -> None:
    """The API server takes every object of the production values, with KEDA's and with HPAs, unknown fields refused."""
    for mode in ("keda", "hpa"):
        arguments = ("template", "prod", str(CHART), "-n", NAMESPACE, "-f", str(CHART / "values-production.yaml"))
        rendered = mesh.cluster.helm(
            *arguments, f"--kube-version={KUBERNETES_VERSION}", f"--set=autoscaling.mode={mode}"
        )
        said = mesh.cluster.kubectl(
            "apply",
            "-n",
            NAMESPACE,
            "--dry-run=server",
            "--validate=strict",
            "-f",
            "-",
            stdin=rendered,
        )
        taken = ["configuration.dapr.io/gaggle-recipe", "poddisruptionbudget.policy/prod-audit"]
        if mode == "keda":
            taken += ["scaledobject.keda.sh/prod-audit", "triggerauthentication.keda.sh/prod-kafka"]
        for one in taken:
            assert one in said


def test_lag_brings_replicas(mesh: Installed) -> None:
    """Events that wait for audit on Kafka bring it more replicas, by KEDA and the chart's own ScaledObject.

    audit is away meanwhile, so that the lag is what was published; all of it is logged once the replicas are there.
    """
    user, conversation = _user(), f"c-{uuid.uuid4().hex[:8]}"
    _converse(mesh, user, conversation, "before")
    deployment = ("deployment", f"{RELEASE}-audit", "-n", NAMESPACE)
    mesh.cluster.kubectl("scale", *deployment, "--replicas=0")
    # A Pod that is being ended still takes events.
    audit = ("pods", NAMESPACE, "app.kubernetes.io/name=audit")
    eventually("audit is away", lambda: not mesh.cluster.objects(*audit))
    for number in range(_WAITING):
        request = _append(conversation, f"waiting {number}")
        mesh.calls.service("conversation", _STUBS, "AppendMessages", request, user)
    with _scaled_by_lag(mesh, "audit", most=3):
        eventually("what waits is seen", lambda: (_lag(mesh, "audit") or 0) >= _WAITING)
        eventually("there are as many as may be", lambda: len(running_pods(mesh.cluster, "audit")) == 3)
        mesh.cluster.kubectl("rollout", "status", *deployment, "--timeout=2m")
        eventually("nothing waits", lambda: _lag(mesh, "audit") == 0)
    logged = audit_service_pb2.ListEventsRequest(
        filter=audit_service_pb2.EventFilter(entity_id=conversation), page_size=200
    )
    answer = mesh.calls.service("audit", audit_service_pb2_grpc.AuditServiceStub, "ListEvents", logged, user)
    assert len(answer.entries) > _WAITING


def test_an_upgrade_loses_nothing(mesh: Installed) -> None:
    """`helm upgrade` rolls every Pod under load: repeating a request_id suffices, nothing acknowledged is lost."""
    user, conversation = _user(), f"c-{uuid.uuid4().hex[:8]}"
    _converse(mesh, user, conversation, "first")
    before = {service: running_pods(mesh.cluster, service)[0]["metadata"]["uid"] for service in SERVICES}
    with _Appending(mesh, user, conversation) as appending:
        mesh.cluster.helm(
            *("upgrade", RELEASE, str(CHART), "--namespace", NAMESPACE, *_VALUES),
            *("--set=settings.GAGGLE_LOG_LEVEL=debug", "--wait", "--timeout=12m"),
        )
    for service in SERVICES:
        (pod,) = running_pods(mesh.cluster, service)
        assert pod["metadata"]["uid"] != before[service]
    assert appending.acknowledged
    assert _texts(mesh, user, conversation)[1:] == appending.acknowledged


def test_a_rollback_goes_back(mesh: Installed) -> None:
    """`helm rollback` brings the settings of the first revision back, and state is untouched by it."""
    user, conversation = _user(), f"c-{uuid.uuid4().hex[:8]}"
    _converse(mesh, user, conversation, "before")
    assert "GAGGLE_LOG_LEVEL" in _settings(mesh)
    mesh.cluster.helm("rollback", RELEASE, "1", "--namespace", NAMESPACE, "--wait", "--timeout=12m")
    assert "GAGGLE_LOG_LEVEL" not in _settings(mesh)
    assert eventually("the conversation is there", lambda: _texts(mesh, user, conversation)) == ["before"]
    history = mesh.cluster.helm("history", RELEASE, "--namespace", NAMESPACE, "-o", "json")
    assert history.count('"revision"') == 3  # install, upgrade, rollback


def test_uninstalled_it_leaves_the_secrets_alone(mesh: Installed) -> None:
    """`helm uninstall` takes everything that it brought; the secrets are the operator's and stay."""
    mesh.cluster.helm("uninstall", RELEASE, "--namespace", NAMESPACE, "--wait", "--timeout=5m")
    eventually(
        "the Pods are gone",
        lambda: (
            not mesh.cluster.objects(
                "pods", NAMESPACE, "app.kubernetes.io/part-of=gaggle,app.kubernetes.io/name!=ready"
            )
            or None
        ),
    )
    for kind in ("deployments", "components", "configurations", "networkpolicies", "roles"):
        assert mesh.cluster.objects(kind, NAMESPACE) == [], kind
    assert mesh.cluster.objects("secrets", NAMESPACE, "app.kubernetes.io/part-of=gaggle")


class _Appending:
    """Appends one message after the other for as long as the block lasts, each until it is acknowledged."""

    def __init__(self, mesh: Installed, user: str, conversation: str) -> None:
        self._mesh = mesh
        self._user = user
        self._conversation = conversation
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self.acknowledged: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._enough.set()
        self._thread.join(timeout=120)
        assert not self._thread.is_alive(), "an append was not acknowledged within two minutes"

    def _work(self) -> None:
        number = 0
        while not self._enough.is_set():
            text, request_id = f"message {number}", uuid.uuid4().hex
            request = _append(self._conversation, text, request_id)
            eventually(
                text,
                lambda: self._mesh.calls.service("conversation", _STUBS, "AppendMessages", request, self._user),  # noqa: B023
            )
            self.acknowledged.append(text)
            number += 1


def _append(conversation: str, text: str, request_id: str = "") -> Any:
    return conversation_service_pb2.AppendMessagesRequest(
        conversation_id=conversation, messages=[text_message(text)], request_id=request_id
    )


def _converse(mesh: Installed, user: str, conversation: str, text: str) -> None:
    request = conversation_service_pb2.CreateConversationRequest(conversation_id=conversation, title="A heron")
    mesh.calls.service("conversation", _STUBS, "CreateConversation", request, user)
    mesh.calls.service("conversation", _STUBS, "AppendMessages", _append(conversation, text), user)


def _texts(mesh: Installed, user: str, conversation: str) -> list[str]:
    texts: list[str] = []
    request = conversation_service_pb2.ListMessagesRequest(
        conversation_id=conversation, page_size=200, after_sequence=0
    )
    while True:
        answer = mesh.calls.service("conversation", _STUBS, "ListMessages", request, user)
        texts += [one.content[0].text.text for one in answer.messages]
        if not answer.next_page_token:
            return texts
        request.page_token = answer.next_page_token


def _of_namespace(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _cluster_ip(mesh: Installed, service: str) -> str:
    (found,) = (one for one in mesh.cluster.objects("services", NAMESPACE) if one["metadata"]["name"] == service)
    return str(found["spec"]["clusterIP"])


@contextlib.contextmanager
def _scaled_by_lag(mesh: Installed, service: str, *, most: int) -> Iterator[None]:
    """A service is scaled by the ScaledObject that the chart renders for it; it has one replica afterwards."""
    values = ["--set=autoscaling.mode=keda", f"--set=autoscaling.kafka.bootstrapServers={HOST}:{KAFKA_PORT}"]
    values += [f"--set-string=autoscaling.kafka.lagThreshold={_WAITING_EACH}"]
    values += [f"--set=services.{service}.autoscaling.minReplicas=1"]
    values += [f"--set=services.{service}.autoscaling.maxReplicas={most}"]
    only = ("--show-only", "templates/services.yaml")
    rendered = mesh.cluster.helm("template", RELEASE, str(CHART), "-n", NAMESPACE, *_VALUES, *values, *only)
    name = f"{RELEASE}-{service}"
    (scaled,) = (
        one
        for one in yaml.safe_load_all(rendered)
        if one and (one["kind"], one["metadata"]["name"]) == ("ScaledObject", name)
    )
    mesh.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(scaled))
    try:
        yield
    finally:
        mesh.cluster.kubectl("delete", "scaledobject", name, "-n", NAMESPACE, "--timeout=1m")
        eventually("its HPA is gone", lambda: not mesh.cluster.objects("horizontalpodautoscalers", NAMESPACE))
        mesh.cluster.kubectl("scale", "deployment", name, "-n", NAMESPACE, "--replicas=1")
        mesh.cluster.kubectl("rollout", "status", "deployment", name, "-n", NAMESPACE, "--timeout=2m")
        eventually("one is left", lambda: len(running_pods(mesh.cluster, service)) == 1)


def _lag(mesh: Installed, service: str) -> int | None:
    """What the API serves as the lag of a service's consumer group, for the HPA; None before it does."""
    path = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}/s1-kafka-{service}-topics"
    selector = f"labelSelector=scaledobject.keda.sh%2Fname%3D{RELEASE}-{service}"
    said = mesh.cluster.kubectl("get", "--raw", f"{path}?{selector}", check=False)
    try:
        (item,) = json.loads(said)["items"]
    except ValueError:
        return None
    return int(item["value"])


def _settings(mesh: Installed) -> str:
    return mesh.cluster.kubectl("get", "configmap", f"{RELEASE}-settings", "-n", NAMESPACE, "-o", "yaml")


def _user() -> str:
    return f"user-{uuid.uuid4().hex[:8]}"
