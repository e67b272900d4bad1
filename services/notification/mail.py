"""E-mail: how it reads, and how it is handed to a mail server (RFC 5321, 5322).

Its Message-ID is made of what it tells, so that one that is sent twice can be known as one. List-Unsubscribe and
List-Unsubscribe-Post are those of RFC 2369 and RFC 8058.
"""

import asyncio
import hashlib
import html
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email import policy
from email.headerregistry import BaseHeader, HeaderRegistry, UnstructuredHeader
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import quote

import aiosmtplib

from services.notification import domain
from services.notification.domain import Notification
from services.notification.outcome import DeliveryError
from services.notification.settings import NotificationSettings
from services.notification.tokens import UnsubscribeTokens
from services.runtime.errors import GaggleError

_TLS_PORT = 465
_PERMANENT = range(500, 600)
_SUBJECT_CHARACTERS = 200


class _Addresses(UnstructuredHeader, BaseHeader):
    """URLs between angle brackets, one a line. A longer one than a line would be written as an encoded word."""

    def fold(self, *, policy: policy.Policy) -> str:
        return f"{self.name}: {str(self).replace('>, <', f'>,{policy.linesep} <')}{policy.linesep}"


_HEADERS = HeaderRegistry()
_HEADERS.map_to_type("list-unsubscribe", _Addresses)
_POLICY = policy.default.clone(header_factory=_HEADERS)

Secrets = Callable[[str], Awaitable[str]]
"""Gives a secret by its name. Raises UnavailableError."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where e-mail goes, and as whom."""

    host: str
    port: int
    username: str
    password: str
    sender: str


class Mailer:
    """Writes and sends e-mail."""

    def __init__(self, settings: NotificationSettings, secrets: Secrets, tokens: UnsubscribeTokens) -> None:
        """Raises OSError for a file of certificates that can't be read."""
        self._settings = settings
        self._secrets = secrets
        self._tokens = tokens
        self._tls = ssl.create_default_context(cafile=settings.smtp_ca_file or None)
        self._server: MailServer | None = None
        self._asked = 0.0

    async def send(self, user_id: str, address: str, zone: str, told: Sequence[Notification]) -> None:
        """Send one e-mail that tells of these. Raises DeliveryError."""
        try:
            async with asyncio.timeout(self._settings.smtp_timeout_seconds):
                await self._hand_over(user_id, address, zone, told)
        except TimeoutError as error:
            seconds = self._settings.smtp_timeout_seconds
            raise DeliveryError(f"the mail server did not take it within {seconds:g} s") from error

    async def _hand_over(self, user_id: str, address: str, zone: str, told: Sequence[Notification]) -> None:
        server = await self._where()
        message = self.write(user_id, address, zone, told, server.sender)
        tls = self._settings.smtp_security == "tls" or server.port == _TLS_PORT
        try:
            await aiosmtplib.send(
                message,
                sender=server.sender,
                recipients=[address],
                hostname=server.host,
                port=server.port,
                username=server.username or None,
                password=server.password or None,
                use_tls=tls,
                start_tls=not tls and self._settings.smtp_security == "starttls",
                tls_context=self._tls if tls or self._settings.smtp_security == "starttls" else None,
                timeout=self._settings.smtp_timeout_seconds,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            refusal = error.recipients[0]
            raise DeliveryError(
                f"the mail server refused the recipient: {refusal.code} {refusal.message}",
                for_good=refusal.code in _PERMANENT,
            ) from error
        except aiosmtplib.SMTPDataError as error:
            raise DeliveryError(
                f"the mail server refused the message: {error.code} {error.message}", for_good=error.code in _PERMANENT
            ) from error
        except (aiosmtplib.SMTPException, OSError, ValueError) as error:
            # What the server holds against us or the sender, an operator can mend: it is tried again.
            raise DeliveryError(f"the mail server: {type(error).__name__}: {error}") from error

    async def _where(self) -> MailServer:
        if self._server is None or time.monotonic() - self._asked > self._settings.smtp_secrets_seconds:
            try:
                host, sender = await self._secrets("SMTP_HOST"), await self._secrets("SMTP_FROM_EMAIL")
            except GaggleError as error:
                raise DeliveryError(f"no mail server is set: {error}") from error
            port = await self._optional("SMTP_PORT")
            if port and not port.isdecimal():
                raise DeliveryError("the secret SMTP_PORT is no number")
            username, password = await self._optional("SMTP_USERNAME"), await self._optional("SMTP_PASSWORD")
            self._server = MailServer(host, int(port or 587), username, password, sender)
            self._asked = time.monotonic()
        return self._server

    async def _optional(self, name: str) -> str:
        try:
            return await self._secrets(name)
        except GaggleError:
            return ""

    def write(self, user_id: str, address: str, zone: str, told: Sequence[Notification], sender: str) -> EmailMessage:
        """Write an e-mail, as plain text and HTML."""
        message = EmailMessage(_POLICY)
        message["From"], message["To"] = sender, address
        subject = told[0].title if len(told) == 1 else f"{len(told)} notifications"
        message["Subject"] = " ".join(subject.split())[:_SUBJECT_CHARACTERS] or "Notification"
        message["Date"] = format_datetime(datetime.now(UTC))
        message["Message-ID"] = f"<{key(told)}@{sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"
        token = self._tokens.make(user_id)
        mailbox = f"<mailto:{sender}?subject={quote(f'unsubscribe {token}')}>"
        if self._settings.unsubscribe_url:
            page = self._settings.unsubscribe_url.replace("{token}", token)
            message["List-Unsubscribe"] = f"<{page}>, {mailbox}"
            message["List-Unsubscribe-Post"] = "List-Unsubscribe=One-Click"
        else:
            message["List-Unsubscribe"] = mailbox
        message.set_content("\n\n".join(_text(one, zone) for one in told) + "\n")
        body = "\n".join(_html(one, zone) for one in told)
        message.add_alternative(
            f'<!doctype html>\n<html><head><meta charset="utf-8"></head><body>\n{body}\n</body></html>\n',
            subtype="html",
        )
        return message


def key(told: Sequence[Notification]) -> str:
    """Name what an e-mail or a delivery tells: the same for the same notifications."""
    if len(told) == 1:
        return told[0].id
    return "digest-" + hashlib.sha256("\0".join(one.id for one in told).encode()).hexdigest()[:32]


def _when(one: Notification, zone: str) -> str:
    return domain.wall_clock(one.create_time.ToDatetime(UTC), zone)


def _text(one: Notification, zone: str) -> str:
    return "\n".join(part for part in (one.title, one.body, _when(one, zone)) if part)


def _html(one: Notification, zone: str) -> str:
    title = html.escape(one.title)
    body = html.escape(one.body).replace("\n", "<br>\n")
    return f"<h3>{title}</h3>\n<p>{body}</p>\n<p><small>{html.escape(_when(one, zone))}</small></p>"
