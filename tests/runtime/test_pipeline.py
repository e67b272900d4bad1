"""The path that every call takes, on a real server and a real channel."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import grpc
import pytest
from dapr.proto.runtime.v1 import appcallback_pb2
from google.protobuf import empty_pb2, wrappers_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from joserfc.jwk import OKPKey
from structlog.testing import capture_logs

from tests.conditions import eventually
from tests.runtime.conftest import watched
from tests.runtime.serving import (
    APP_TOKEN,
    KINDS,
    SECRET,
    SERVICE,
    Keys,
    Served,
    bearer,
    refused,
    serving,
)

Code = grpc.StatusCode


async def _logged(lines: Iterable[Any], method: str) -> dict[str, Any]:
    """The log line of a call: it is written once the answer is on its way."""
    path = f"/{SERVICE}/{method}"

    async def look() -> dict[str, Any] | None:
        return next((one for one in lines if one["event"] == "call" and one["method"] == path), None)

    return await eventually(look, within=5, what=f"a log line of {method}")


@pytest.mark.parametrize("method", KINDS)
async def test_each_kind_answers(served: Served, method: str) -> None:
    """Each kind of call is answered, logged in one line and counted once, as OK."""
    with capture_logs() as lines:
        assert await served.say(method, "hello") == "hello"
        line = await _logged(lines, method)
    assert (line["code"], line["user"], len(line["trace_id"])) == ("OK", "ann", 32)
    assert line["ms"] >= 0
    await served.counted(method, {"OK": 1})
    assert sum(one["event"] == "call" for one in lines) == 1
    assert (served.pipeline._calls, served.pipeline._streams) == (0, 0)


@pytest.mark.parametrize("method", KINDS)
async def test_bytes_pass_untouched(served: Served, method: str) -> None:
    """A handler may answer with bytes, which go out as they lie."""
    assert await served.say(method, "bytes") == "as it lies"


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xff\xff\xff", id="no message at all"),
        pytest.param(b"\x0a\x7fab", id="cut off"),
        pytest.param(b"\x0a\x02\xc3\x28", id="bad UTF-8"),
    ],
)
async def test_malformed_bytes(served: Served, method: str, data: bytes) -> None:
    """Bytes that are no message are the caller's fault, and said so in the contract's terms."""
    told = await refused(served.send(method, data))
    assert (told.code, told.reason) == (Code.INVALID_ARGUMENT, "MALFORMED_REQUEST")
    assert list(told.violations) == ["request"]
    await served.counted(method, {"INVALID_ARGUMENT": 1})


_MAPPING = [
    pytest.param("invalid", Code.INVALID_ARGUMENT, "INVALID_FIELD", {}, None, id="invalid"),
    pytest.param("too large", Code.RESOURCE_EXHAUSTED, "TOO_LARGE", {"size": "9", "limit": "8"}, None, id="too large"),
    pytest.param("unauthenticated", Code.UNAUTHENTICATED, "INVALID_TOKEN", {}, None, id="unauthenticated"),
    pytest.param("denied", Code.PERMISSION_DENIED, "ROLE_REQUIRED", {"role": "admin"}, None, id="denied"),
    pytest.param("not found", Code.NOT_FOUND, "NOT_FOUND", {"type": "task", "id": "t1"}, None, id="not found"),
    pytest.param("taken", Code.ALREADY_EXISTS, "ALREADY_EXISTS", {"type": "task", "id": "t1"}, None, id="taken"),
    pytest.param("conflict", Code.ABORTED, "STALE_ETAG", {"etag": "7", "current": "9"}, None, id="conflict"),
    pytest.param("wrong state", Code.FAILED_PRECONDITION, "WRONG_STATE", {"state": "done"}, None, id="wrong state"),
    pytest.param(
        "away", Code.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", {"dependency": "statestore"}, 2.5, id="dependency away"
    ),
    pytest.param("no time", Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {}, None, id="no time"),
    pytest.param("timeout", Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", {}, None, id="timeout"),
    pytest.param("lost", Code.DATA_LOSS, "STATE_MISSING", {}, None, id="state missing"),
]


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(("fault", "code", "reason", "metadata", "retry"), _MAPPING)
async def test_errors_are_mapped(
    served: Served, method: str, fault: str, code: Code, reason: str, metadata: dict[str, str], retry: float | None
) -> None:
    """A domain error becomes its status with ErrorInfo, and RetryInfo only where a retry helps."""
    with capture_logs() as lines:
        told = await refused(served.say(method, f"raise {fault}"))
        line = await _logged(lines, method)
    assert (told.code, told.reason, told.domain) == (code, reason, "gaggle")
    assert (told.metadata, told.retry_seconds) == (metadata, retry)
    assert "secret" not in told.text
    assert line["code"] == code.name
    await served.counted(method, {code.name: 1})


async def test_each_field_is_named(served: Served) -> None:
    """Every violated field is in BadRequest with what is wrong."""
    told = await refused(served.say("Unary", "raise invalid"))
    assert told.violations == {"title": "must be set", "page_size": "must not be negative"}


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        pytest.param("many", Code.INVALID_ARGUMENT, id="thousands of violations"),
        pytest.param("long", Code.NOT_FOUND, id="an id without end"),
    ],
)
async def test_an_error_fits_its_trailers(served: Served, method: str, fault: str, code: Code) -> None:
    """However much there is to say, the status arrives: what gRPC's default limit on metadata would cut is left out."""
    told = await refused(served.say(method, f"raise {fault}"))
    assert told.code == code
    assert told.reason
    assert len(told.text) < 2000


@pytest.mark.parametrize("method", KINDS)
async def test_the_unforeseen_is_logged_and_not_told(served: Served, method: str) -> None:
    """A fault that nobody foresaw is INTERNAL without a word of its text; the log has it under the trace told."""
    with capture_logs() as lines:
        told = await refused(served.say(method, "raise unforeseen"))
        await _logged(lines, method)
    assert (told.code, told.reason) == (Code.INTERNAL, "INTERNAL")
    assert SECRET not in told.text + str(told.metadata)
    (line,) = [one for one in lines if one["event"] == "unforeseen"]
    assert line["trace_id"] == told.metadata["trace_id"]
    assert SECRET in str(line["exc_info"])


def _part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _claims(**changes: object) -> dict[str, object]:
    return {"iss": "gaggle", "aud": "gaggle", "sub": "ann", "exp": int(time.time()) + 60, **changes}


def _hs256(keys: Keys) -> str:
    """Sign by HMAC with the public key's bytes, as if they were a shared secret."""
    body = f"{_part({'alg': 'HS256', 'kid': 'issuer'})}.{_part(_claims())}"
    public = keys.keys["issuer"].as_dict(private=False)["x"]
    digest = hmac.new(str(public).encode(), body.encode(), hashlib.sha256).digest()
    return f"{body}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _tampered(keys: Keys) -> str:
    head, _, signature = keys.signer().sign("ann", ttl_seconds=60).split(".")
    return f"{head}.{_part(_claims(sub='root', roles=['admin']))}.{signature}"


def _without(claim: str) -> Callable[[Keys], str]:
    return lambda keys: keys.signer().sign("ann", ttl_seconds=60, **{claim: None})


def _nested(_keys: Keys) -> str:
    deep = base64.urlsafe_b64encode(b"[" * 4000).decode()
    return f"{deep}.{_part(_claims())}."


_REFUSED_TOKENS: list[Any] = [
    pytest.param(lambda _keys: (), "INVALID_TOKEN", id="none"),
    pytest.param(lambda _keys: (("authorization", ""),), "INVALID_TOKEN", id="empty"),
    pytest.param(lambda _keys: (("authorization", "Basic YTpi"),), "INVALID_TOKEN", id="another scheme"),
    pytest.param(lambda _keys: "no.jwt", "INVALID_TOKEN", id="no JWT"),
    pytest.param(lambda _keys: "%.%.#", "INVALID_TOKEN", id="no base64"),
    pytest.param(_nested, "INVALID_TOKEN", id="nested too deeply"),
    pytest.param(lambda _keys: f"{_part([1])}.{_part(_claims())}.", "INVALID_TOKEN", id="a header that is a list"),
    pytest.param(lambda _keys: f"{_part({})}.{_part('x')}.", "INVALID_TOKEN", id="claims that are a text"),
    pytest.param(lambda keys: keys.signer().sign("ann", ttl_seconds=-60), "EXPIRED_TOKEN", id="expired"),
    pytest.param(lambda keys: keys.signer("stranger").sign("ann", ttl_seconds=60), "INVALID_TOKEN", id="forged"),
    pytest.param(_tampered, "INVALID_TOKEN", id="tampered with"),
    pytest.param(
        lambda keys: keys.signer(audience="other").sign("ann", ttl_seconds=60), "INVALID_TOKEN", id="wrong audience"
    ),
    pytest.param(
        lambda keys: keys.signer(issuer="other").sign("ann", ttl_seconds=60), "INVALID_TOKEN", id="wrong issuer"
    ),
    pytest.param(
        lambda _keys: f"{_part({'alg': 'none', 'kid': 'issuer'})}.{_part(_claims())}.", "INVALID_TOKEN", id="alg none"
    ),
    pytest.param(_hs256, "INVALID_TOKEN", id="HMAC with the public key"),
    pytest.param(
        lambda keys: keys.signer("agent").sign("ann", ttl_seconds=60), "INVALID_TOKEN", id="a service's key as issuer"
    ),
    pytest.param(
        lambda keys: keys.signer().sign("ann", ttl_seconds=60, service="agent"),
        "INVALID_TOKEN",
        id="the issuer's key as a service",
    ),
    pytest.param(
        lambda keys: keys.signer("task").sign("ann", ttl_seconds=60, service="agent"),
        "INVALID_TOKEN",
        id="one service's key as another",
    ),
    pytest.param(
        lambda keys: keys.signer().sign("ann", ttl_seconds=60, service="issuer"),
        "INVALID_TOKEN",
        id="issuer as service",
    ),
    pytest.param(lambda keys: keys.signer().sign("", ttl_seconds=60), "INVALID_TOKEN", id="no user"),
    pytest.param(_without("sub"), "INVALID_TOKEN", id="a user that is null"),
    pytest.param(_without("exp"), "INVALID_TOKEN", id="no end"),
    pytest.param(_without("aud"), "INVALID_TOKEN", id="no audience"),
    pytest.param(lambda keys: keys.signer().sign("u" * 129, ttl_seconds=60), "INVALID_TOKEN", id="a user too long"),
    pytest.param(
        lambda keys: keys.signer().sign("ann", ttl_seconds=60, nbf=int(time.time()) + 600),
        "INVALID_TOKEN",
        id="not yet good",
    ),
    pytest.param(
        lambda keys: keys.signer().sign("ann", ttl_seconds=60, roles="admin"), "INVALID_TOKEN", id="roles as a text"
    ),
]


@pytest.mark.parametrize(("make", "reason"), _REFUSED_TOKENS)
async def test_untrusted_tokens(served: Served, make: Callable[[Keys], Any], reason: str) -> None:
    """Whoever has no good token is UNAUTHENTICATED, and no two forgeries can be told apart by the answer."""
    made = make(served.keys)
    told = await refused(served.say("Unary", "x", made if isinstance(made, tuple) else bearer(made)))
    assert (told.code, told.reason, told.metadata) == (Code.UNAUTHENTICATED, reason, {})


@pytest.mark.parametrize("method", KINDS)
async def test_every_kind_wants_a_token(served: Served, method: str) -> None:
    """No kind of call lets in a caller without a token."""
    told = await refused(served.say(method, "x", ()))
    assert told.code == Code.UNAUTHENTICATED
    await served.counted(method, {"UNAUTHENTICATED": 1})


async def test_a_token_is_not_remembered_longer_than_it_lasts(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that was verified before is refused once it has expired."""
    metadata = served.user()
    assert await served.say("Unary", "x", metadata) == "x"
    later = time.time() + 120
    monkeypatch.setattr(time, "time", lambda: later)
    told = await refused(served.say("Unary", "x", metadata))
    assert (told.code, told.reason) == (Code.UNAUTHENTICATED, "EXPIRED_TOKEN")


_CALLERS: dict[str, Callable[[Served], tuple[tuple[str, str], ...]]] = {
    "nobody": lambda _served: (),
    "user": lambda served: served.user(),
    "admin": lambda served: served.user("admin"),
    "agent": lambda served: served.service("agent"),
    "task": lambda served: served.service("task"),
    "agent with a role": lambda served: served.service("agent", roles=["admin"]),
}
_MATRIX = [
    pytest.param(method, caller, code, id=f"{method} by {caller}")
    for method, codes in {
        "Unary": (Code.UNAUTHENTICATED, Code.OK, Code.OK, *[Code.PERMISSION_DENIED] * 3),
        "Admin": (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.OK, *[Code.PERMISSION_DENIED] * 3),
        "Open": (Code.OK,) * 6,
        "ForUserOrAgent": (Code.UNAUTHENTICATED, Code.OK, Code.OK, Code.OK, Code.PERMISSION_DENIED, Code.OK),
        "ForAgent": (
            Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.PERMISSION_DENIED,
            Code.OK, Code.PERMISSION_DENIED, Code.OK,
        ),
    }.items()
    for caller, code in zip(_CALLERS, codes, strict=True)
]  # fmt: skip


@pytest.mark.parametrize(("method", "caller", "code"), _MATRIX)
async def test_access(served: Served, method: str, caller: str, code: Code) -> None:
    """Who may call a method is what its table says, for users, admins and each service."""
    call = served.say(method, "x", _CALLERS[caller](served))
    if code == Code.OK:
        assert await call == "x"
    else:
        assert (await refused(call)).code == code


async def test_the_handler_sees_the_caller(served: Served) -> None:
    """A service's token names the user it acts for and the service; roles in it are not believed."""
    assert json.loads(await served.say("Unary", "caller", served.user("admin"))) == ["ann", "", ["admin"]]
    acting = served.service("agent", roles=["admin"])
    assert json.loads(await served.say("ForUserOrAgent", "caller", acting)) == ["ann", "agent", []]


_APP_CALLBACK = "dapr.proto.runtime.v1.AppCallback"
_CALLBACKS = [
    pytest.param("OnTopicEvent", appcallback_pb2.TopicEventRequest(topic="t"), id="a topic"),
    pytest.param("OnInvoke", empty_pb2.Empty(), id="an invocation"),
    pytest.param("OnBindingEvent", empty_pb2.Empty(), id="a binding"),
    pytest.param("OnJobEvent", empty_pb2.Empty(), id="a job"),
]
_DOORS = [
    pytest.param((), Code.UNAUTHENTICATED, id="no token"),
    pytest.param((("dapr-api-token", ""),), Code.UNAUTHENTICATED, id="an empty one"),
    pytest.param((("dapr-api-token", "guess"),), Code.UNAUTHENTICATED, id="a wrong one"),
    pytest.param((("authorization", f"Bearer {APP_TOKEN}"),), Code.UNAUTHENTICATED, id="the right one elsewhere"),
    pytest.param(
        (("dapr-api-token", APP_TOKEN), ("dapr-app-id", "x")), Code.PERMISSION_DENIED, id="proxied, to an app id"
    ),
    pytest.param(
        (("dapr-api-token", APP_TOKEN), ("dapr-callee-app-id", "x")), Code.PERMISSION_DENIED, id="proxied, by a sidecar"
    ),
    pytest.param((("dapr-api-token", APP_TOKEN),), Code.UNAVAILABLE, id="the own sidecar"),
]


@pytest.mark.parametrize(("method", "request_"), _CALLBACKS)
@pytest.mark.parametrize(("metadata", "code"), _DOORS)
async def test_callbacks_are_a_door(
    served: Served, method: str, request_: Any, metadata: tuple[tuple[str, str], ...], code: Code
) -> None:
    """Only the own sidecar gets through to a callback: with the app token, and on a call that was not proxied."""
    call = served.channel.unary_unary(f"/{_APP_CALLBACK}/{method}")
    told = await refused(call(request_.SerializeToString(), metadata=metadata, timeout=10))
    assert told.code == code
    assert (told.reason == "CALLBACK_REFUSED") == (code != Code.UNAVAILABLE)


@pytest.mark.parametrize("proxied", ["dapr-app-id", "dapr-callee-app-id"])
async def test_subscriptions_are_not_told_to_others(served: Served, proxied: str) -> None:
    """What the sidecar asks at its start needs no token, and is refused all the same when it was proxied."""
    call = served.channel.unary_unary(f"/{_APP_CALLBACK}/ListTopicSubscriptions")
    await call(b"", timeout=10)
    told = await refused(call(b"", metadata=((proxied, "x"), ("dapr-api-token", APP_TOKEN)), timeout=10))
    assert told.code == Code.PERMISSION_DENIED


@pytest.mark.parametrize("method", KINDS)
async def test_not_ready(served: Served, method: str) -> None:
    """Until a service has what it needs its calls are UNAVAILABLE with a time to come again, and public ones work."""
    served.pipeline.ready = False
    told = await refused(served.say(method, "x"))
    assert (told.code, told.reason, told.retry_seconds) == (Code.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", 1.0)
    assert await served.say("Open", "x", ()) == "x"


@pytest.mark.parametrize("method", KINDS)
async def test_too_many_at_once(unblocked: None, method: str) -> None:
    """One call more than the limit is refused with a time to come again; when one ends there is room."""
    del unblocked
    async with serving(max_calls=1, max_streams=1) as served:
        served.probe.hold = asyncio.Event()
        first = asyncio.ensure_future(served.say(method, "wait"))
        await served.probe.waiting.wait()
        told = await refused(served.say(method, "x"))
        assert (told.code, told.reason, told.metadata) == (
            Code.RESOURCE_EXHAUSTED,
            "TOO_MANY_REQUESTS",
            {"limit": "1"},
        )
        assert told.retry_seconds == 0.5
        served.probe.hold.set()
        assert await first == "wait"

        async def room() -> bool:
            return (served.pipeline._calls, served.pipeline._streams) == (0, 0)

        await eventually(room, within=5, what="room for a call")
        assert await served.say(method, "x") == "x"


async def test_the_deadline_is_passed_on(unblocked: None) -> None:
    """What is left for calls further down is the caller's deadline or the service's own, whichever is nearer."""
    del unblocked
    async with serving(timeout=20) as served:
        assert 19 < float(await served.say("Unary", "remaining", timeout=None)) <= 20
        assert 19 < float(await served.say("Unary", "remaining", timeout=50)) <= 20
        assert 4 < float(await served.say("Unary", "remaining", timeout=5)) <= 5.1
    async with serving(timeout=1e-9) as served:
        told = await refused(served.say("Unary", "remaining"))
        assert (told.code, told.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


@pytest.mark.parametrize("method", KINDS)
async def test_a_call_that_is_given_up_stops(served: Served, method: str) -> None:
    """When a caller's deadline is over the handler is cancelled, the call is logged so and its place is free again."""
    with capture_logs() as lines:
        told = await refused(served.say(method, "wait", timeout=0.3))
        assert told.code == Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(served.probe.cancelled.wait(), 5)
        line = await _logged(lines, method)
    assert line["code"] == "CANCELLED"

    assert (served.pipeline._calls, served.pipeline._streams) == (0, 0)
    await served.counted(method, {"CANCELLED": 1})


async def test_a_stream_that_is_left_stops(served: Served) -> None:
    """A client that leaves a stream half-way frees its place."""
    data = wrappers_pb2.StringValue(value="count 1000000").SerializeToString()
    call = served.channel.unary_stream(f"/{SERVICE}/ServerStream")(data, metadata=served.user())
    for _ in range(3):
        await call.read()
    call.cancel()

    async def free() -> bool:
        return served.pipeline._streams == 0 and served.calls("ServerStream") == {"CANCELLED": 1}

    await eventually(free, within=5, what="the stream's place")


@pytest.mark.parametrize("method", KINDS)
@pytest.mark.parametrize("sampled", ["00", "01"])
async def test_the_trace_goes_on(served: Served, method: str, sampled: str) -> None:
    """The caller's trace is continued: its id and its decision stay, the span is the service's own."""
    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    metadata = (*served.user(), ("traceparent", f"00-{trace}-{span}-{sampled}"))
    with capture_logs() as lines:
        version, trace_id, own, flags = (await served.say(method, "trace", metadata)).split("-")
        line = await _logged(lines, method)
    assert (version, trace_id, flags) == ("00", trace, sampled)
    assert len(own) == 16
    assert own != span
    assert line["trace_id"] == trace


@pytest.mark.parametrize(
    "traceparent", ["", "x", "00-0-0-0", f"00-{'0' * 32}-{'0' * 16}-01", f"00-{'z' * 32}-{'1' * 16}-01"]
)
async def test_a_bad_traceparent_starts_a_trace(served: Served, traceparent: str) -> None:
    """A traceparent that is none is not passed on; the call gets a trace of its own."""
    metadata = (*served.user(), ("traceparent", traceparent))
    parts = (await served.say("Unary", "trace", metadata)).split("-")
    assert [len(one) for one in parts] == [2, 32, 16, 2]
    assert int(parts[1], 16)
    assert traceparent.find(parts[1]) < 0


async def test_health_needs_no_token(served: Served) -> None:
    """Whoever watches over a process may ask for its health."""
    check = served.channel.unary_unary("/grpc.health.v1.Health/Check")
    unknown = health_pb2.HealthCheckRequest(service="nobody").SerializeToString()
    assert (await refused(check(unknown, timeout=10))).code == Code.NOT_FOUND
    sidecar = served.channel.unary_unary("/dapr.proto.runtime.v1.AppCallbackHealthCheck/HealthCheck")
    assert await sidecar(b"", timeout=10) == b""


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_reflection_needs_no_token(served: Served, version: str) -> None:
    """grpcurl, old and new, finds the services without a token, and not the sidecar's callbacks."""
    call = served.channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    answers = [one async for one in call(iter([request.SerializeToString()]), timeout=10)]
    response = reflection_pb2.ServerReflectionResponse.FromString(answers[0])
    names = {one.name for one in response.list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health", f"grpc.reflection.{version}.ServerReflection"} <= names
    assert not any("AppCallback" in name for name in names)


async def test_unknown_method(served: Served) -> None:
    """A method that is not there is UNIMPLEMENTED."""
    assert (await refused(served.send("Nothing", b""))).code == Code.UNIMPLEMENTED


async def test_a_request_over_the_limit(served: Served) -> None:
    """A message above 16 MiB is RESOURCE_EXHAUSTED and the limit is told."""
    told = await refused(served.send("Unary", b"\0" * (16 * 1024 * 1024 + 1)))
    assert told.code == Code.RESOURCE_EXHAUSTED
    assert str(16 * 1024 * 1024) in told.text


async def test_a_blocked_loop_is_noticed() -> None:
    """The fixture that these tests stand on sees a call that blocks the loop."""

    async def block() -> None:
        await asyncio.sleep(0)
        time.sleep(0.6)  # noqa: ASYNC251 - the fault itself

    with watched() as told:
        await asyncio.create_task(block())
        await asyncio.sleep(0)
    assert len(told) == 1


async def test_another_mesh_s_issuer_key(served: Served) -> None:
    """A key of the right name from elsewhere opens nothing, even after a good token was seen."""
    assert await served.say("Unary", "x") == "x"
    foreign = OKPKey.generate_key("Ed25519", {"kid": "issuer"})
    served.keys.stranger = foreign
    told = await refused(served.say("Unary", "x", bearer(served.keys.signer("stranger").sign("ann", ttl_seconds=60))))
    assert told.code == Code.UNAUTHENTICATED
