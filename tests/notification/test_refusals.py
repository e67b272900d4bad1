"""What the notification service refuses, and the exact answer each gets."""

from typing import Any

import pytest

from gaggle.notification.v1 import notification_pb2 as pb
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified

pytestmark = pytest.mark.mesh

_ID = "0199c2a0-0000-7000-8000-000000000001"
_HOOK = "https://example.org/hook"
_SECRET = "x" * 24


def _webhook(url: str, secret: str = _SECRET) -> dict[str, Any]:
    return {"webhook": pb.Webhook(url=url, secret=secret)}


def _kind(kind: Any) -> pb.KindPreferences:
    return pb.KindPreferences(kind=kind)


# Method, fields, the field that is named.
INVALID: dict[str, tuple[str, dict[str, Any], str]] = {
    "page-size": ("ListNotifications", {"page_size": -1}, "page_size"),
    "page-token": ("ListNotifications", {"page_token": "x"}, "page_token"),
    "mark-nothing": ("MarkRead", {}, "notification_ids"),
    "mark-both": ("MarkRead", {"notification_ids": [_ID], "all": True}, "notification_ids"),
    "mark-many": ("MarkRead", {"notification_ids": [f"{n}" for n in range(101)]}, "notification_ids"),
    "mark-id": ("MarkRead", {"notification_ids": ["a b"]}, "notification_ids[0]"),
    "mark-twice": ("MarkRead", {"notification_ids": [_ID, _ID]}, "notification_ids[1]"),
    "mark-request-id": ("MarkRead", {"all": True, "request_id": "ü"}, "request_id"),
    "address": ("SetPreferences", {"email_address": "ann"}, "email_address"),
    "address-two": ("SetPreferences", {"email_address": "a@example.org,b@example.org"}, "email_address"),
    "address-line": ("SetPreferences", {"email_address": "a@example.org\nBcc: b@example.org"}, "email_address"),
    "address-named": ("SetPreferences", {"email_address": "Ann <ann@example.org>"}, "email_address"),
    "address-long": ("SetPreferences", {"email_address": f"a@{'x.' * 130}org"}, "email_address"),
    "zone": ("SetPreferences", {"time_zone": "Mars/Olympus"}, "time_zone"),
    "zone-path": ("SetPreferences", {"time_zone": "../../etc/passwd"}, "time_zone"),
    "url": ("SetPreferences", _webhook("example.org"), "webhook.url"),
    "url-http": ("SetPreferences", _webhook("http://example.org"), "webhook.url"),
    "url-scheme": ("SetPreferences", _webhook("file:///etc/passwd"), "webhook.url"),
    "url-port": ("SetPreferences", _webhook("https://example.org:x"), "webhook.url"),
    "url-user": ("SetPreferences", _webhook("https://a:b@example.org"), "webhook.url"),
    "url-space": ("SetPreferences", _webhook("https://example.org/a b"), "webhook.url"),
    "url-long": ("SetPreferences", _webhook(f"https://example.org/{'x' * 2000}"), "webhook.url"),
    "url-loopback": ("SetPreferences", _webhook("https://127.0.0.1/"), "webhook.url"),
    "url-loopback-short": ("SetPreferences", _webhook("https://127.1/"), "webhook.url"),
    "url-localhost": ("SetPreferences", _webhook("https://localhost/"), "webhook.url"),
    "url-metadata": ("SetPreferences", _webhook("https://169.254.169.254/latest"), "webhook.url"),
    "url-six": ("SetPreferences", _webhook("https://[::ffff:10.0.0.1]/"), "webhook.url"),
    "secret-short": ("SetPreferences", _webhook(_HOOK, "short"), "webhook.secret"),
    "secret-base64": ("SetPreferences", _webhook(_HOOK, "whsec_%%%"), "webhook.secret"),
    "secret-none": ("SetPreferences", _webhook(_HOOK, ""), "webhook.secret"),
    "secret-alone": ("SetPreferences", _webhook(""), "webhook.secret"),
    "quiet": ("SetPreferences", {"quiet_hours": pb.QuietHours(start="25:00", end="07:00")}, "quiet_hours.start"),
    "quiet-half": ("SetPreferences", {"quiet_hours": pb.QuietHours(start="22:00")}, "quiet_hours.end"),
    "quiet-kind": (
        "SetPreferences",
        {"quiet_hours": pb.QuietHours(exempt_kinds=[99])},  # type: ignore[list-item]
        "quiet_hours.exempt_kinds[0]",
    ),
    "digest": ("SetPreferences", {"digest": pb.Digest(times_of_day=["8am"])}, "digest.times_of_day[0]"),
    "digest-many": ("SetPreferences", {"digest": pb.Digest(times_of_day=["08:00"] * 25)}, "digest.times_of_day"),
    "digest-kind": ("SetPreferences", {"digest": pb.Digest(kinds=[1, 1])}, "digest.kinds[1]"),  # type: ignore[list-item]
    "kinds": ("SetPreferences", {"kinds": [_kind(0)]}, "kinds[0].kind"),
    "kinds-twice": ("SetPreferences", {"kinds": [_kind(1), _kind(1)]}, "kinds[1].kind"),
    "unsubscribe": ("Unsubscribe", {"token": "x"}, "token"),
    "redrive-nothing": ("RedriveParked", {}, "ids"),
    "redrive-both": ("RedriveParked", {"ids": [_ID], "all": True}, "ids"),
    "parked-page": ("ListParked", {"page_size": -1}, "page_size"),
    "send-kind": ("SendNotification", {"title": "a"}, "kind"),
    "send-kind-unknown": ("SendNotification", {"title": "a", "kind": 99}, "kind"),
    "send-title": ("SendNotification", {"title": " ", "kind": 6}, "title"),
    "send-title-long": ("SendNotification", {"title": "ü" * 513, "kind": 6}, "title"),
    "send-body-long": ("SendNotification", {"title": "a", "body": "x" * 2049, "kind": 6}, "body"),
    "send-subject": ("SendNotification", {"title": "a", "subject_id": "x" * 129, "kind": 6}, "subject_id"),
}


@pytest.mark.parametrize(("method", "fields", "named"), INVALID.values(), ids=INVALID)
async def test_bad_input_is_refused_by_name(
    notified: Notified, method: str, fields: dict[str, Any], named: str
) -> None:
    """A field that is wrong is INVALID_ARGUMENT, and BadRequest names it."""
    service = "task" if method == "SendNotification" else ""
    refusal = await refused(notified(method, roles=("admin",), service=service, **fields))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", (named,)), refusal


async def test_another_user_s_notification_is_not_found(notified: Notified, stranger: Notified) -> None:
    """Another user's notification is answered as one that is not there."""
    sent = await notified.tell("mine")
    await stranger.tell("theirs")
    theirs = await refused(stranger("MarkRead", notification_ids=[sent.notification_id]))
    missing = await refused(stranger("MarkRead", notification_ids=[_ID]))
    assert (theirs.code, theirs.reason) == (missing.code, missing.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert theirs.message.replace(sent.notification_id, "") == missing.message.replace(_ID, "")
    assert (await notified("GetUnreadCount")).unread_count == 1
    assert [one.title for one in await stranger.all()] == ["theirs"]


async def test_only_services_send(notified: Notified) -> None:
    """Users, and services that the table does not name, may not send."""
    for service in ("", "audit"):
        refusal = await refused(notified("SendNotification", service=service, title="a", kind=6))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")


async def test_a_request_has_one_effect(notified: Notified) -> None:
    """The same request_id gives the first answer again; with another body it is refused."""
    first = await notified.tell("one", request_id="r1")
    assert await notified.tell("one", request_id="r1") == first
    assert (await refused(notified.tell("two", request_id="r1"))).reason == "REQUEST_ID_REUSED"
    assert [one.id for one in await notified.all()] == [first.notification_id]
    await notified.told(1, "notification.created")


async def test_reading_is_told_and_counted(notified: Notified) -> None:
    """What is marked as read is counted, listed and told once."""
    sent = [await notified.tell(f"n{number}") for number in range(3)]
    first = [sent[0].notification_id]
    assert (await notified("MarkRead", notification_ids=first)).unread_count == 2
    assert (await notified("MarkRead", notification_ids=first)).unread_count == 2
    assert [one.title for one in await notified.all(unread_only=True)] == ["n2", "n1"]
    assert (await notified("MarkRead", all=True)).unread_count == 0
    read = await notified.told(2, "notification.read")
    assert {one.get("unreadCount", 0) for one in read} == {0, 2}


async def test_a_stale_etag_is_refused(notified: Notified) -> None:
    """Of two who change the same preferences one is told that the other was faster."""
    etag = (await notified("GetPreferences")).preferences.etag
    await notified("SetPreferences", etag=etag, time_zone="Europe/Berlin")
    refusal = await refused(notified("SetPreferences", etag=etag, time_zone="UTC"))
    assert (refusal.code, refusal.reason) == ("ABORTED", "STALE_ETAG")
    assert (await notified("GetPreferences")).preferences.time_zone == "Europe/Berlin"


async def test_a_callback_from_outside_is_refused(mesh: Mesh, notified: Notified) -> None:
    """An event that does not come from the own sidecar is refused, however it is addressed."""
    import grpc

    from services.runtime.dapr import appcallback_pb2

    call = notified.channel.unary_unary(
        "/dapr.proto.runtime.v1.AppCallback/OnTopicEvent",
        request_serializer=appcallback_pb2.TopicEventRequest.SerializeToString,
        response_deserializer=appcallback_pb2.TopicEventResponse.FromString,
    )
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call(
            appcallback_pb2.TopicEventRequest(pubsub_name="pubsub", topic="reminders"),
            metadata=mesh.metadata(notified.user),
        )
    assert raised.value.code() in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
