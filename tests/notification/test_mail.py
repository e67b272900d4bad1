"""How an e-mail is written, to the byte."""

from datetime import UTC, datetime
from email import message_from_bytes, policy

from aiosmtplib.email import flatten_message
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.notification.v1 import notification_pb2
from services.notification.mail import Mailer
from services.notification.settings import NotificationSettings
from services.notification.tokens import UnsubscribeTokens


async def _no_secret(name: str) -> str:
    raise AssertionError(name)


def test_unsubscribing_addresses_are_never_encoded() -> None:
    """A mail program finds both addresses of List-Unsubscribe in one piece, however long the user's id is."""
    tokens = UnsubscribeTokens()
    tokens.use("key")
    page = "https://example.org/unsubscribe?token={token}"
    settings = NotificationSettings.model_validate(
        {"app_id": "n", "port": 1, "sidecar_port": 1, "app_api_token": "t", "unsubscribe_url": page}
    )
    told = notification_pb2.Notification(id="n1", title="Grüße " * 30)
    told.create_time.CopyFrom(_timestamp())
    user = "u" * 255

    written = Mailer(settings, _no_secret, tokens).write(user, "ann@example.org", "UTC", [told], "gaggle@example.org")
    raw = flatten_message(written)

    token = tokens.make(user)
    assert f"List-Unsubscribe: <https://example.org/unsubscribe?token={token}>,\r\n <mailto:gaggle@".encode() in raw
    assert max(map(len, raw.split(b"\r\n"))) <= 998  # RFC 5322, 2.1.1
    read = message_from_bytes(raw, policy=policy.default)
    assert [one.strip()[0] + one.strip()[-1] for one in read["List-Unsubscribe"].split(",")] == ["<>", "<>"]
    assert read["Subject"] == written["Subject"]


def _timestamp() -> Timestamp:
    made = Timestamp()
    made.FromDatetime(datetime(2026, 3, 1, tzinfo=UTC))
    return made
