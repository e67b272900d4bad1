"""What leaves the mesh: to a real mail server and a real HTTP server, once in effect, late if need be."""

import asyncio
import base64
import hashlib
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from email.message import EmailMessage

import httpx
import pytest

from cli.mesh.data import DataDirectory, write_private
from gaggle.notification.v1 import notification_pb2
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh, start_mesh
from tests.notification.notifying import Notified, clock
from tests.notification.receivers import PASSWORD, USERNAME, HookServer, MailServer, make_certificate

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("notification-delivery")]

_SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
_WITHIN = 30.0
_SETTINGS = {
    "GAGGLE_FIRST_PAUSE_SECONDS": "0.2",
    "GAGGLE_LONGEST_PAUSE_SECONDS": "1",
    "GAGGLE_SWEEP_SECONDS": "0.2",
    "GAGGLE_SWEEP_LEASE_SECONDS": "3",
    "GAGGLE_SMTP_TIMEOUT_SECONDS": "2",
    "GAGGLE_WEBHOOK_TIMEOUT_SECONDS": "2",
    "GAGGLE_CLAIM_SECONDS": "2",
    "GAGGLE_WEBHOOK_ALLOWED_NETWORKS": '["127.0.0.0/8"]',
    "GAGGLE_UNSUBSCRIBE_URL": "https://example.org/unsubscribe?token={token}",
}


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MailServer]:
    """A mail server with a certificate of its own."""
    folder = tmp_path_factory.mktemp("mail")
    server = MailServer(*make_certificate(folder))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def hooks() -> Iterator[HookServer]:
    """An HTTP server."""
    with HookServer().running() as server:
        yield server


@pytest.fixture(scope="module")
def unsubscribe_port() -> int:
    """A port that is free now; both replicas answer on it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory, mail: MailServer, unsubscribe_port: int) -> Iterator[Mesh]:
    """A mesh that knows the mail server."""
    folder = tmp_path_factory.mktemp("mesh")
    data = DataDirectory.at(folder)
    data.create()
    secrets = {
        "SMTP_HOST": "localhost",
        "SMTP_PORT": str(mail.port),
        "SMTP_USERNAME": USERNAME,
        "SMTP_PASSWORD": PASSWORD,
        "SMTP_FROM_EMAIL": "gaggle@example.org",
    }
    write_private(data.secrets_file, json.dumps(secrets))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**_SETTINGS, "GAGGLE_SMTP_CA_FILE": str(mail.certificate)}.items():
            patch.setenv(name, value)
        patch.setenv("GAGGLE_UNSUBSCRIBE_PORT", str(unsubscribe_port))
        one = start_mesh(folder, only=["notification", "audit", "conversation"], replicas={"notification": 2})
    yield one
    if one.file.exists():
        one.stop()


@pytest.fixture
async def told(own: Mesh, user: str) -> AsyncIterator[Notified]:
    """The test's user, with an address."""
    async with own.channel("notification") as channel:
        one = Notified(own, channel, user)
        await one("SetPreferences", email_address=one.address, time_zone="Europe/Berlin")
        yield one


async def _mails(mail: MailServer, address: str, count: int, *, within: float = _WITHIN) -> list[EmailMessage]:
    async def came() -> bool:
        return len(mail.to(address)) >= count

    await eventually(came, within=within, what=f"{count} e-mails to {address}")
    assert len(mail.to(address)) == count
    return list(mail.to(address))


async def _no_more_waits(told: Notified, delivered: int) -> None:
    """So many deliveries are told, so that no further e-mail is under way."""
    await told.told(delivered, "notification.delivered")


async def test_a_reminder_delivered_twice_is_told_once(told: Notified, mail: MailServer) -> None:
    """reminder.due published twice gives one inbox entry and one e-mail, in the trace that set the reminder."""
    trace = "0af7651916cd43dd8448eb211c80319c"
    event = told.reminder("Water <the> plants", metadata={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    await told.publish("reminders", event)
    await told.publish("reminders", event)
    (one,) = await told.until(1)
    assert (one.title, one.body) == ("Water <the> plants", "Due 2031-07-01 12:00 (Europe/Berlin)")
    assert (one.subject_type, one.subject_id, one.sequence) == ("task", event["data"]["task_id"], 1)
    await _mails(mail, told.address, 1)
    (delivered,) = await told.told(1, "notification.delivered")
    assert (delivered["notificationIds"], delivered["channel"]) == ([one.id], "CHANNEL_EMAIL")
    (created,) = await told.told(1, "notification.created")
    assert created["sourceEventId"] == event["event_id"]
    assert (created["trace"], delivered["trace"]) == (trace, trace)
    # A third one comes behind the others; once it is there, no second e-mail is to come.
    other = told.reminder("Other")
    await told.publish("reminders", event)
    await told.publish("reminders", other)
    await told.until(2)
    await _no_more_waits(told, 2)
    first, _ = mail.to(told.address)
    assert first["Subject"] == "Water <the> plants"
    assert first["From"] == "gaggle@example.org"
    assert first["Message-ID"] == f"<{one.id}@example.org>"
    assert "<https://example.org/unsubscribe?token=" in first["List-Unsubscribe"]
    assert first["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    text, html = first.get_body(("plain",)), first.get_body(("html",))
    assert text is not None
    assert html is not None
    assert "Water <the> plants" in text.get_content()
    assert "Water &lt;the&gt; plants" in html.get_content()


async def test_unsubscribing_ends_e_mail(told: Notified, mail: MailServer) -> None:
    """The token of an e-mail's header ends e-mail without any other; the inbox goes on."""
    await told.publish("reminders", told.reminder("One"))
    (message,) = await _mails(mail, told.address, 1)
    token = str(message["List-Unsubscribe"]).partition("?token=")[2].partition(">")[0]
    await told("Unsubscribe", token=token)
    assert (await told("GetPreferences")).preferences.email_address == ""
    await told.publish("reminders", told.reminder("Two"))
    await told.until(2)
    assert (await refused(told("Unsubscribe", token=token[:-4] + "AAAA"))).fields == ("token",)


async def test_one_click_ends_e_mail(told: Notified, mail: MailServer, unsubscribe_port: int) -> None:
    """What a mail program sends to the header's address ends e-mail; whatever ends TLS passes it on to the service."""
    await told.publish("reminders", told.reminder("One"))
    (message,) = await _mails(mail, told.address, 1)
    address = str(message["List-Unsubscribe"]).partition("<https://example.org")[2].partition(">")[0]
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{unsubscribe_port}") as web:
        assert (await web.get(address)).status_code == 200
        assert (await told("GetPreferences")).preferences.email_address == told.address
        answer = await web.post(address, data={"List-Unsubscribe": "One-Click"})
        assert (answer.status_code, answer.is_redirect) == (200, False)
        assert (await told("GetPreferences")).preferences.email_address == ""
        assert (await web.post(f"{address}x", data={"List-Unsubscribe": "One-Click"})).status_code == 400


async def test_a_mail_server_that_was_away_gets_everything_once(told: Notified, mail: MailServer) -> None:
    """While the mail server is away nothing is lost; when it is back each e-mail comes once."""
    mail.stop()
    try:
        for number in range(5):
            await told.publish("reminders", told.reminder(f"Away {number}"))
        await told.until(5)
        assert mail.to(told.address) == []
    finally:
        mail.start()
    await _mails(mail, told.address, 5)
    await _no_more_waits(told, 5)
    subjects = sorted(str(one["Subject"]) for one in mail.to(told.address))
    assert subjects == [f"Away {number}" for number in range(5)]


async def test_a_refused_delivery_is_parked_and_redriven(told: Notified, mail: MailServer) -> None:
    """What a server refuses for good is parked at once; an admin lists it and has it tried again, once."""
    mail.refused.add(told.address)
    await told.publish("reminders", told.reminder("Refused"))
    (event,) = await told.told(1, "notification.parked")
    assert "550" in event["error"]
    listed = (await told("ListParked", roles=("admin",))).parked
    (parked,) = [one for one in listed if one.user_id == told.user]
    assert (parked.channel, parked.attempts) == (notification_pb2.CHANNEL_EMAIL, 1)
    assert "no such mailbox" in parked.error
    for method in ("ListParked", "RedriveParked"):
        assert (await refused(told(method))).code == "PERMISSION_DENIED"
    mail.refused.discard(told.address)
    assert (await told("RedriveParked", roles=("admin",), ids=[parked.id])).ids == [parked.id]
    await _mails(mail, told.address, 1)
    await _no_more_waits(told, 1)
    assert (await refused(told("RedriveParked", roles=("admin",), ids=[parked.id]))).code == "NOT_FOUND"
    listed = (await told("ListParked", roles=("admin",))).parked
    assert [one for one in listed if one.user_id == told.user] == []


async def test_a_webhook_is_signed_and_keeps_its_key(told: Notified, hooks: HookServer) -> None:
    """A webhook is signed, and comes again under the same idempotency key until it is answered well."""
    path = f"/{told.user}"
    hooks.answers[path] = [500, 429]
    webhook = notification_pb2.Webhook(url=f"http://127.0.0.1:{hooks.port}{path}", secret=_SECRET)
    shown = (await told("SetPreferences", webhook=webhook, email_address="")).preferences
    assert (shown.webhook.secret, shown.webhook.secret_set) == ("", True)
    await told.publish("goose.recipe.failed", _failed(told))
    (one,) = await told.until(1)
    await told.told(1, "notification.delivered")
    came = hooks.at(path)
    assert len(came) == 3
    for headers, body in came:
        assert headers["idempotency-key"] == headers["webhook-id"] == one.id
        signed = f"{one.id}.{headers['webhook-timestamp']}.".encode() + body
        digest = hmac.new(b"0123456789abcdef0123456789abcdef", signed, hashlib.sha256).digest()
        assert headers["webhook-signature"] == "v1," + base64.b64encode(digest).decode()
        assert headers["host"] == f"127.0.0.1:{hooks.port}"
    body = json.loads(came[-1][1])
    assert body["type"] == "notification.recipe_failed"
    assert (body["data"]["title"], body["data"]["body"]) == ("Recipe nightly failed", "no disk")


async def test_a_webhook_that_is_gone_is_parked(told: Notified, hooks: HookServer) -> None:
    """410, as any answer that will not change, parks a delivery at its first attempt."""
    path = f"/{told.user}"
    hooks.answers[path] = [410]
    webhook = notification_pb2.Webhook(url=f"http://127.0.0.1:{hooks.port}{path}", secret=_SECRET)
    await told("SetPreferences", webhook=webhook, email_address="")
    await told.publish("goose.recipe.failed", _failed(told))
    (event,) = await told.told(1, "notification.parked")
    assert event["error"] == "the webhook answered 410"
    assert len(hooks.at(path)) == 1


async def test_quiet_hours_and_digest_hold_through_a_kill(told: Notified, own: Mesh, mail: MailServer) -> None:
    """What quiet hours and a digest hold back leaves at their end, once, though every process was killed meanwhile."""
    end = clock(14)
    wake = time.time() + 13
    hours = notification_pb2.QuietHours(
        start=clock(-60), end=end, exempt_kinds=[notification_pb2.NOTIFICATION_KIND_RECIPE_FAILED]
    )
    await told("SetPreferences", quiet_hours=hours, time_zone="UTC")
    digested = Notified(own, told.channel, f"{told.user}-digest")
    await digested(
        "SetPreferences",
        email_address=digested.address,
        digest=notification_pb2.Digest(times_of_day=[end]),
    )
    await told.publish("reminders", told.reminder("Quiet"))
    await told.publish("goose.recipe.failed", _failed(told))
    for number in range(3):
        await digested.publish("reminders", digested.reminder(f"Gathered {number}"))
    await told.until(2)
    await digested.until(3)
    await _mails(mail, told.address, 1)
    assert mail.to(told.address)[0]["Subject"] == "Recipe nightly failed"
    await told.told(1, "notification.delivered")
    await asyncio.gather(*(own.killed(name) for name in ("notification", "notification-2")))
    if time.time() < wake:
        assert len(mail.to(told.address)) == 1
        assert mail.to(digested.address) == []
    await _mails(mail, told.address, 2, within=60)
    await _mails(mail, digested.address, 1, within=60)
    await told.told(2, "notification.delivered")
    (event,) = await digested.told(1, "notification.delivered")
    assert len(event["notificationIds"]) == 3
    (message,) = mail.to(digested.address)
    text = message.get_body(("plain",))
    assert message["Subject"] == "3 notifications"
    assert text is not None
    assert all(f"Gathered {number}" in text.get_content() for number in range(3))


async def test_what_others_ask_for_is_told(told: Notified) -> None:
    """An approval that waits and a task that is assigned come by the topic `notifications`; a muted kind does not."""
    muted = notification_pb2.KindPreferences(kind=notification_pb2.NOTIFICATION_KIND_MESSAGE, muted=True)
    await told("SetPreferences", kinds=[muted], email_address="")
    for kind in ("message", "approval_waiting", "NOTIFICATION_KIND_TASK_ASSIGNED"):
        data = {"kind": kind, "title": kind, "subjectType": "task", "subjectId": "7"}
        event = {"eventId": f"{told.user}-{kind}", "eventType": "notification.requested", "userId": told.user}
        await told.publish("notifications", {**event, "data": data})
    found = await told.until(2)
    assert {one.kind for one in found} == {
        notification_pb2.NOTIFICATION_KIND_APPROVAL_WAITING,
        notification_pb2.NOTIFICATION_KIND_TASK_ASSIGNED,
    }
    assert found[0].subject_id == "7"


async def test_an_erasure_takes_the_inbox(told: Notified) -> None:
    """An erased user has no notification, no preferences, and is told nothing any more."""
    await told.publish("reminders", told.reminder("Soon gone"))
    await told.until(1)
    await told.publish("goose.user.erased", {"userId": told.user, "data": {"erasureId": f"e-{told.user}"}})

    async def gone() -> bool:
        return not await told.all()

    await eventually(gone, within=_WITHIN, what="an empty inbox")
    assert (await told("GetPreferences")).preferences.email_address == ""
    refusal = await refused(told("SetPreferences", email_address=told.address))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_ERASED")


def _failed(told: Notified) -> dict[str, object]:
    return {
        "eventId": f"failed-{told.user}-{time.time_ns()}",
        "eventType": "goose.recipe.failed",
        "entityType": "execution",
        "entityId": "e1",
        "userId": told.user,
        "data": {"recipeName": "nightly", "error": "no disk", "executionId": "e1"},
    }
