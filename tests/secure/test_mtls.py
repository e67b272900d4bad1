"""A mesh of `gaggle up --mtls`: who is let in, by which identity, and that everything still works."""

import asyncio
import contextlib
import json
import os
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import httpx
import pytest
import yaml
from cryptography import x509
from google.protobuf.empty_pb2 import Empty

from cli.mesh.certificates import make_issuer
from cli.mesh.components import topic_scopes
from gaggle.recipe.v1 import execution_pb2
from services.runtime import topics
from services.runtime.dapr import (
    appcallback_pb2,
    binding_pb2,
    dapr_pb2_grpc,
    jobs_pb2,
    metadata_pb2,
    pubsub_pb2,
    secret_pb2,
    state_pb2,
)
from tests.conditions import eventually
from tests.conversation.talking import Talker, refusal_of
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified
from tests.recipe.running import Cook
from tests.recipe.test_executions import with_server
from tests.recurrence.series import begin, done
from tests.reminder.reminding import Reminding, ahead
from tests.secure.conftest import SecureMesh
from tests.secure.needs import APIS, CALLS, SECRETS, SERVICES, components_of, wiring_of
from tests.task.tasking import Tasker

# One worker: the mesh of all services is there once.
pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("secure"), pytest.mark.timeout(300)]

_CALLBACKS = {"AppCallback", "AppCallbackAlpha", "AppCallbackHealthCheck"}
_ANSWER_SECONDS = 20.0
_AT_ONCE = 16
_HANDSHAKE_SECONDS = 10.0
_PACKET_BYTES = 65_536


@pytest.fixture
async def channels(secure: SecureMesh) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """A channel to each service's sidecar."""
    async with contextlib.AsyncExitStack() as stack:
        yield {name: await stack.enter_async_context(secure.sidecar(name)) for name in SERVICES}


# -- TLS and identities


def _internal(mesh: Mesh, service: str) -> tuple[str, int]:
    host, _, port = mesh.service(service).replicas[0].sidecar_internal.rpartition(":")
    return host, int(port)


def _shaken(mesh: SecureMesh, service: str, *, authority: Path, certificate: Path | None = None) -> bytes:
    """The certificate that a sidecar shows, once it has taken ours; raises OSError if it refuses."""
    context = ssl.create_default_context(cafile=str(authority))
    # Identities are URIs (SPIFFE), not host names.
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    if certificate is not None:
        context.load_cert_chain(certificate)
    with (
        socket.create_connection(_internal(mesh, service), timeout=_HANDSHAKE_SECONDS) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        shown = wrapped.getpeercert(binary_form=True)
        assert shown is not None
        # TLS 1.3 tells of a refused client with its first answer: HTTP/2's SETTINGS, or an alert.
        wrapped.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9)[:3] + b"\x04" + bytes(5))
        if not wrapped.recv(9):
            raise ConnectionResetError
    return shown


def _folded(folder: Path) -> Path:
    """A client's certificate with its key, of an authority of one's own."""
    folder.mkdir()
    make_issuer(folder)
    pair = folder / "pair.pem"
    pair.write_text((folder / "issuer.key").read_text() + (folder / "issuer.crt").read_text())
    return pair


@pytest.mark.parametrize("service", SERVICES)
def test_each_sidecar_has_the_identity_of_its_app(secure: SecureMesh, service: str) -> None:
    """The port between sidecars speaks TLS, and its certificate names the app id and comes of the mesh's authority."""
    authority = secure.data.identities / "ca.crt"
    context = ssl.create_default_context(cafile=str(authority))
    context.check_hostname = False
    with (
        socket.create_connection(_internal(secure, service), timeout=_HANDSHAKE_SECONDS) as raw,
        context.wrap_socket(raw) as wrapped,
    ):
        shown = x509.load_der_x509_certificate(wrapped.getpeercert(binary_form=True) or b"")
        assert wrapped.version() == "TLSv1.3"
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    identity = f"spiffe://public/ns/default/{secure.service(service).app_id}"
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [identity]


def test_a_sidecar_of_another_authority_is_refused(secure: SecureMesh, tmp_path: Path) -> None:
    """Neither a caller without a certificate nor one whose certificate is another authority's is talked to."""
    authority = secure.data.identities / "ca.crt"
    for certificate in (None, _folded(tmp_path / "stranger")):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            _shaken(secure, "conversation", authority=authority, certificate=certificate)


async def test_plain_calls_between_sidecars_are_refused(secure: SecureMesh) -> None:
    """A sidecar without mTLS, or anybody with a gRPC client, gets no answer at the port between sidecars."""
    address = secure.service("conversation").replicas[0].sidecar_internal
    async with grpc.aio.insecure_channel(address) as channel:
        path = "/gaggle.conversation.v1.ConversationService/GetConversation"
        metadata = (("dapr-app-id", secure.service("conversation").app_id),)
        raw: Any = channel
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await raw.unary_unary(path)(b"", metadata=metadata, timeout=_ANSWER_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("claimed", ["none", "another's", "of one's own making"])
async def test_sentry_gives_no_identity_without_its_token(secure: SecureMesh, tmp_path: Path, claimed: str) -> None:
    """A daprd on this machine that wants to be `agent` needs agent's token: sentry gives it none, and it ends."""
    identities = secure.data.identities
    token = tmp_path / "token"
    if claimed == "another's":
        token.write_text((identities / f"{secure.service('audit').app_id}.jwt").read_text())
    else:
        token.write_text("eyJhbGciOiJub25lIn0.e30.")
    ports = [_free_port() for _ in range(4)]
    names = ("dapr-grpc-port", "dapr-http-port", "dapr-internal-grpc-port", "metrics-port")
    sentry = secure.description.port_base + 612
    environment = {
        "PATH": os.environ["PATH"],
        "NAMESPACE": "default",
        "DAPR_TRUST_ANCHORS": (identities / "ca.crt").read_text(),
        **({} if claimed == "none" else {"DAPR_SENTRY_TOKEN_FILE": str(token)}),
    }
    process = await asyncio.create_subprocess_exec(
        str(secure.description.daprd),
        f"--app-id={secure.service('agent').app_id}",
        *(f"--{name}={port}" for name, port in zip(names, ports, strict=True)),
        "--dapr-listen-addresses=127.0.0.1",
        "--dapr-internal-grpc-listen-address=127.0.0.1",
        "--metrics-listen-address=127.0.0.1",
        "--enable-mtls",
        f"--sentry-address=127.0.0.1:{sentry}",
        "--control-plane-trust-domain=localhost",
        "--control-plane-namespace=default",
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(60):
            said, _ = await process.communicate()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
    assert process.returncode != 0
    assert b"SignCertificate" in said
    assert b"PermissionDenied" in said or b"InvalidArgument" in said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.skipif(
    os.geteuid() != 0, reason="reading what goes over the loopback takes root; the handshakes above do not"
)
async def test_nothing_readable_goes_between_sidecars(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], user: str
) -> None:
    """Of a call between sidecars, captured on its way, not a word can be read; from sidecar to app it can."""
    marked = f"marked-{user}"
    port = _internal(secure, "conversation")[1]
    straight = int(secure.service("conversation").address.rpartition(":")[2])
    heard = {port: b"", straight: b""}
    stop = asyncio.Event()

    def listen() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3)) as raw:
            raw.bind(("lo", 0))
            raw.settimeout(0.2)
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    packet = raw.recv(_PACKET_BYTES)
                    # IPv4 behind 14 bytes of Ethernet; TCP's ports come first in it.
                    begin = 14 + 4 * (packet[14] & 15)
                    for number in (int.from_bytes(packet[begin + at : begin + at + 2]) for at in (0, 2)):
                        if number in heard:
                            heard[number] += packet[begin:]

    listening = asyncio.create_task(asyncio.to_thread(listen))
    try:
        path = "/gaggle.conversation.v1.ConversationService/GetConversation"
        metadata = (*secure.by_sidecar("audit", of="conversation"), ("x-marked", marked))
        raw: Any = channels["audit"]

        async def both_heard() -> bool:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await raw.unary_unary(path)(marked.encode(), metadata=metadata, timeout=_ANSWER_SECONDS)
            return len(heard[port]) > 0 and marked.encode() in heard[straight]

        await eventually(both_heard, within=_ANSWER_SECONDS, what="the call on its way to the app")
    finally:
        stop.set()
        await listening
    assert marked.encode() not in heard[port]
    assert b"GetConversation" not in heard[port]


# -- who may call whom


async def _methods(service: str) -> list[str]:
    """Every method of a service, Dapr's callbacks too."""
    own = [
        f"{one.service.full_name}/{method.name}"
        for one in (await wiring_of(service)).servicers
        for method in one.service.methods
    ]
    dapr = [
        f"{appcallback_pb2.DESCRIPTOR.services_by_name[name].full_name}/{method.name}"
        for name in sorted(_CALLBACKS)
        for method in appcallback_pb2.DESCRIPTOR.services_by_name[name].methods
    ]
    return [*own, *dapr, "grpc.health.v1.Health/Check"]


@pytest.mark.parametrize("caller", SERVICES)
async def test_each_service_may_call_what_it_needs_and_nothing_else(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], caller: str
) -> None:
    """By a service's sidecar exactly the methods that it needs are reached, of other services; none of its own."""
    metadata = {callee: secure.by_sidecar(caller, of=callee) for callee in SERVICES}
    raw: Any = channels[caller]
    turn = asyncio.Semaphore(_AT_ONCE)
    reached: set[tuple[str, str]] = set()

    async def call(callee: str, method: str) -> None:
        async with turn:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw.unary_unary(f"/{method}")(b"", metadata=metadata[callee], timeout=_ANSWER_SECONDS)
        error = caught.value
        if error.code() is grpc.StatusCode.PERMISSION_DENIED:
            assert "access control policy has denied access" in str(error.details()), (callee, method)
        elif method.startswith("dapr."):
            # Refused by the caller's own sidecar, whose list of APIs goes by Dapr's names.
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED, (callee, method, error)
        else:
            # The service itself, which asks for a token.
            assert (error.code(), refusal_of(error).reason) == (grpc.StatusCode.UNAUTHENTICATED, "INVALID_TOKEN"), error
            reached.add((callee, method))

    async with asyncio.TaskGroup() as group:
        for callee in SERVICES:
            for method in await _methods(callee):
                group.create_task(call(callee, method))
    assert reached == {
        (callee, method) for (who, callee), methods in CALLS.items() if who == caller for method in methods
    }


_EVENT = appcallback_pb2.TopicEventRequest(
    id="forged", pubsub_name="pubsub", topic=topics.USER_ERASED, data=b'{"userId":"x","data":{}}'
)
FORGED: dict[str, tuple[str, Any]] = {
    "topic": ("AppCallback/OnTopicEvent", _EVENT),
    "bulk": ("AppCallback/OnBulkTopicEvent", appcallback_pb2.TopicEventBulkRequest(pubsub_name="pubsub")),
    "binding": ("AppCallback/OnBindingEvent", appcallback_pb2.BindingEventRequest(name="reminder-sweep")),
    "alpha": ("AppCallbackAlpha/OnBulkTopicEventAlpha1", appcallback_pb2.TopicEventBulkRequest(pubsub_name="pubsub")),
    "job-alpha": ("AppCallbackAlpha/OnJobEventAlpha1", appcallback_pb2.JobEventRequest(name="job")),
    "job": ("AppCallback/OnJobEvent", appcallback_pb2.JobEventRequest(name="job")),
}


@pytest.mark.parametrize("kind", FORGED)
@pytest.mark.parametrize("service", ["conversation", "reminder"])
async def test_callbacks_by_the_own_sidecar_are_refused(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], user: str, service: str, kind: str
) -> None:
    """What daprd 1.18 would hand to its app as if it were a delivery, a mesh with identities refuses."""
    method, request = FORGED[kind]
    raw: Any = channels[service]
    metadata = (*secure.by_sidecar(service, of=service), *secure.metadata(user))
    call = raw.unary_unary(f"/dapr.proto.runtime.v1.{method}")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(request.SerializeToString(), metadata=metadata, timeout=_ANSWER_SECONDS)
    # By the list of APIs; without one the access policy would (it denies a service's own methods to its own sidecar).
    assert caught.value.code() in {grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.PERMISSION_DENIED}
    assert "forged" not in secure.data.log(service).read_text()


# -- tokens both ways


async def test_a_sidecar_asks_for_its_services_token(secure: SecureMesh, channels: dict[str, grpc.aio.Channel]) -> None:
    """A sidecar's API is for its own service: without its token, or with another service's, it is refused."""
    stub: Any = dapr_pb2_grpc.DaprStub(channels["conversation"])  # type: ignore[no-untyped-call]
    request = metadata_pb2.GetMetadataRequest()
    assert (await stub.GetMetadata(request, metadata=secure.by_sidecar("conversation"))).id
    for metadata in ((), secure.by_sidecar("audit")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetMetadata(request, metadata=metadata, timeout=_ANSWER_SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    async with httpx.AsyncClient(base_url=f"http://{secure.service('conversation').sidecar_http}") as client:
        assert (await client.get("/v1.0/metadata")).status_code == 401
        token = {"dapr-api-token": secure.tokens("conversation")["dapr"]}
        assert (await client.get("/v1.0/metadata", headers=token)).status_code == 200
        # Supervisors and kubelets ask without one.
        assert (await client.get("/v1.0/healthz")).status_code == 204


async def test_a_service_asks_for_its_own_sidecars_token(secure: SecureMesh) -> None:
    """A delivery straight to a service's port needs its own token: none, and another service's, are refused."""
    call_path = "/dapr.proto.runtime.v1.AppCallback/OnTopicEvent"
    others = secure.tokens("audit")["app"]
    async with secure.channel("conversation") as channel:
        raw: Any = channel
        for metadata in ((), (("dapr-api-token", others),)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await raw.unary_unary(call_path)(_EVENT.SerializeToString(), metadata=metadata, timeout=_ANSWER_SECONDS)
            assert refusal_of(caught.value).reason == "CALLBACK_REFUSED"
    tokens = [secure.tokens(service)[kind] for service in SERVICES for kind in ("app", "dapr")]
    assert len(set(tokens)) == len(tokens)


# -- components, topics, secrets, APIs


@pytest.mark.parametrize("service", SERVICES)
async def test_each_sidecar_has_the_components_of_its_service(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], service: str
) -> None:
    """A sidecar loads the components that its service needs, and no others."""
    stub: Any = dapr_pb2_grpc.DaprStub(channels[service])  # type: ignore[no-untyped-call]
    answer = await stub.GetMetadata(metadata_pb2.GetMetadataRequest(), metadata=secure.by_sidecar(service))
    assert {one.name for one in answer.registered_components} == components_of(service)


@pytest.mark.parametrize("service", SERVICES)
async def test_each_service_may_read_its_secrets_and_no_others(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], service: str
) -> None:
    """Every secret of the mesh is refused to every service that has no use for it, one by one and all at once."""
    stub: Any = dapr_pb2_grpc.DaprStub(channels[service])  # type: ignore[no-untyped-call]
    there = set(_secrets(secure))
    metadata = secure.by_sidecar(service)
    # What an operator has named beside them.
    may = SECRETS[service] | ({"MODEL_KEY"} if service == "agent" else set())
    may |= {name for name in there if name.startswith("extension-")} if service == "extension" else set()
    for name in sorted(there):
        request = secret_pb2.GetSecretRequest(store_name="secretstore", key=name)
        if name in may:
            assert (await stub.GetSecret(request, metadata=metadata)).data[name]
        else:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.GetSecret(request, metadata=metadata, timeout=_ANSWER_SECONDS)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, name
    bulk = await stub.GetBulkSecret(secret_pb2.GetBulkSecretRequest(store_name="secretstore"), metadata=metadata)
    assert {"database", "redis-password"} <= there
    assert set(bulk.data) == may & there


def _secrets(mesh: Mesh) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(mesh.description.secrets_file.read_text())
    return found


@pytest.mark.parametrize("service", [name for name in SERVICES if "publish" in APIS[name]])
async def test_each_service_may_publish_its_events_and_no_others(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], service: str
) -> None:
    """A service that is taken over cannot tell of what is another's: a user's erasure, a due reminder, a message."""
    stub: Any = dapr_pb2_grpc.DaprStub(channels[service])  # type: ignore[no-untyped-call]
    document = yaml.safe_load((secure.description.components / "pubsub.yaml").read_text())
    fields = {item["name"]: item.get("value") for item in document["spec"]["metadata"]}
    own = set(topic_scopes(fields["publishingScopes"])[secure.service(service).app_id])
    assert own
    for topic in [*topics.ALL_TOPICS, topics.dead_letter_topic(secure.service("conversation").app_id), "anything"]:
        if topic in own:
            continue
        request = pubsub_pb2.PublishEventRequest(pubsub_name="pubsub", topic=topic, data=b"{}")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.PublishEvent(request, metadata=secure.by_sidecar(service), timeout=_ANSWER_SECONDS)
        assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, topic


_USES: dict[str, tuple[str, Any]] = {
    "state": ("GetState", state_pb2.GetStateRequest(store_name="statestore", key="none")),
    "publish": ("PublishEvent", pubsub_pb2.PublishEventRequest(pubsub_name="pubsub", topic="anything", data=b"{}")),
    "bindings": ("InvokeBinding", binding_pb2.InvokeBindingRequest(name="none", operation="none")),
    "jobs": ("GetJobAlpha1", jobs_pb2.GetJobRequest(name="none")),
}


@pytest.mark.parametrize("service", SERVICES)
async def test_each_sidecar_offers_the_apis_of_its_service(
    secure: SecureMesh, channels: dict[str, grpc.aio.Channel], service: str
) -> None:
    """An API of Dapr that a service does not use is not there for it, over HTTP nothing but metadata and health."""
    stub: Any = dapr_pb2_grpc.DaprStub(channels[service])  # type: ignore[no-untyped-call]
    metadata = secure.by_sidecar(service)
    offered = set()
    for api, (method, request) in _USES.items():
        try:
            await getattr(stub, method)(request, metadata=metadata, timeout=_ANSWER_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                continue
        offered.add(api)
    assert offered == APIS[service] & set(_USES)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Shutdown(Empty(), metadata=metadata, timeout=_ANSWER_SECONDS)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    headers = {"dapr-api-token": secure.tokens(service)["dapr"]}
    async with httpx.AsyncClient(base_url=f"http://{secure.service(service).sidecar_http}", headers=headers) as client:
        assert (await client.get("/v1.0/metadata")).status_code == 200
        # The bridge to a better-auth server invokes over HTTP.
        invoking = [] if service == "auth" else ["invoke/audit/method/x"]
        for path in ("state/statestore/none", "secrets/secretstore/token-jwks", *invoking):
            assert (await client.get(f"/v1.0/{path}")).status_code in {403, 404, 501}, path


# -- and yet it moves


async def test_conversations_tasks_and_recipes_go_their_ways(secure: SecureMesh, user: str, tmp_path: Path) -> None:
    """Every call that services make of each other passes: turns, tools, recipes, reminders, series, search, erasure."""
    file = tmp_path / "effects"
    async with contextlib.AsyncExitStack() as stack:
        to = {name: await stack.enter_async_context(secure.channel(name)) for name in SERVICES}
        metadata = secure.metadata(user)
        # task -> reminder (by job) -> notification; task -> recurrence -> task.
        reminding = Reminding(secure, to["reminder"], to["task"], user)
        await reminding.task(ahead(5), 3, title="Take the cake out")
        tasker = Tasker(to["task"], metadata)
        first = await begin(tasker, "FREQ=DAILY", "2031-01-31T09:00+01:00")
        assert (await done(tasker, first.id)).series.occurrence == 2
        notified = Notified(secure, to["notification"], user)
        # recipe -> agent -> conversation and extension; recipe -> extension, conversation.
        cook = Cook(to["recipe"], metadata)
        body = f"""
steps:
- name: note
  tool: {{extension: odd, tool: append, arguments: {{path: "{file}", text: "by hand"}}}}
- name: asked
  prompt: 'tool append {{"path": "{file}", "text": "by model"}}'
prompt: say done by {{{{ steps.note.result | length > 0 }}}}
"""
        execution = await cook.ended(await cook.start(with_server(body)))
        assert execution.status == execution_pb2.EXECUTION_STATUS_COMPLETED, execution
        assert file.read_text().split("\n")[:2] == ["by hand", "by model"]
        # conversation -> audit (search), audit -> conversation (the text).
        talker = Talker(to["conversation"], metadata)

        async def found() -> bool:
            return bool((await talker("SearchMessages", query="model")).hits)

        await eventually(found, within=60, what="the message in the search")

        async def told() -> bool:
            return [one.title for one in await notified.all()] == ["Take the cake out"]

        await eventually(told, within=60, what="the reminder in the inbox")
        # Every service that keeps something takes the event, and tells.
        await talker("EraseUser")

        async def reported() -> bool:
            receipts = {one.service for one in (await talker("GetErasure")).receipts}
            return set(SERVICES) - {"auth", "recurrence", "sync"} <= receipts

        await eventually(reported, within=60, what="receipts of all services")
