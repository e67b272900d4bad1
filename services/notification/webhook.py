"""Webhooks, as the Standard Webhooks specification has them (standardwebhooks.com).

A user's URL must not lead into the operator's own network (server-side request forgery): the name is resolved here, the
addresses are judged, and the connection is made to the very address that was judged, so that a name that changes in
between does not help. Proxies of the environment are not used, redirects not followed.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import httpx
from google.protobuf import json_format

from gaggle.notification.v1 import notification_pb2
from services.notification.domain import Notification
from services.notification.outcome import DeliveryError
from services.notification.settings import NotificationSettings

Address = IPv4Address | IPv6Address
_PREFIX = "whsec_"
_PORTS = {"https": 443, "http": 80}
_AGAIN = frozenset({408, 409, 425, 429})
_CLIENT_ERRORS = range(400, 500)
_REDIRECTS = range(300, 400)
_NAT64 = IPv6Network("64:ff9b::/96")


class Webhooks:
    """Tells webhooks."""

    def __init__(self, settings: NotificationSettings) -> None:
        """Connections are not kept: what is told is seldom."""
        self._networks = settings.webhook_allowed_networks
        self._timeout = settings.webhook_timeout_seconds

    async def send(self, webhook: notification_pb2.Webhook, one: Notification) -> None:
        """Tell a webhook of a notification. Raises DeliveryError."""
        body = payload(one)
        stamp = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "gaggle-notification",
            "Idempotency-Key": one.id,
            "webhook-id": one.id,
            "webhook-timestamp": str(stamp),
            "webhook-signature": sign(webhook.secret, one.id, stamp, body),
        }
        try:
            async with asyncio.timeout(self._timeout):
                await self._post(webhook.url, headers, body)
        except TimeoutError as error:
            raise DeliveryError(f"the webhook did not answer within {self._timeout:g} s") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise DeliveryError(f"the webhook: {type(error).__name__}: {error}") from error

    async def _post(self, url: str, headers: dict[str, str], body: bytes) -> None:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        address = await self._resolve(host, port, parts.scheme)
        literal = f"[{address}]" if isinstance(address, IPv6Address) else str(address)
        target = parts._replace(netloc=f"{literal}:{port}", fragment="").geturl()
        # The name is still what is asked for, and what the certificate has to be of.
        headers["Host"] = parts.netloc.rpartition("@")[2]
        async with (
            httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=self._timeout) as client,
            client.stream("POST", target, content=body, headers=headers, extensions={"sni_hostname": host}) as response,
        ):
            code = response.status_code
        if httpx.codes.is_success(code):
            return
        for_good = code in _REDIRECTS or (code in _CLIENT_ERRORS and code not in _AGAIN)
        raise DeliveryError(f"the webhook answered {code}", for_good=for_good)

    async def _resolve(self, host: str, port: int, scheme: str) -> Address:
        """Give an address of a host, all of which must be allowed. Raises DeliveryError or OSError."""
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [ip_address(str(one[4][0]).partition("%")[0]) for one in found]
        if not addresses or not all(allowed(one, scheme, self._networks) for one in addresses):
            raise DeliveryError("the webhook's address is not allowed", for_good=True)
        return addresses[0]


def allowed(address: Address, scheme: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Tell whether a webhook may be at an address: anywhere in public by https, in `networks` by http too."""
    inner = _embedded(address)
    if any(inner.version == one.version and inner in one for one in networks):
        return True
    return scheme == "https" and inner.is_global and not inner.is_multicast and not inner.is_reserved


def _embedded(address: Address) -> Address:
    """Give the IPv4 address that an IPv6 one stands for."""
    if isinstance(address, IPv6Address):
        if address in _NAT64:
            return IPv4Address(int(address) % 2**32)
        return address.ipv4_mapped or address.sixtofour or address
    return address


def literal_address(host: str) -> Address | None:
    """Read a host that is an address itself; None if it is a name."""
    try:
        return ip_address(host)
    except ValueError:
        pass
    try:
        # What resolvers take too: 127.1, 0x7f000001, 2130706433.
        return IPv4Address(socket.inet_aton(host))
    except (OSError, UnicodeEncodeError):
        return None


def payload(one: Notification) -> bytes:
    """Write what a webhook is told: type, timestamp, and the notification in proto3 JSON."""
    data = json_format.MessageToDict(one)
    kind = notification_pb2.NotificationKind.Name(one.kind).removeprefix("NOTIFICATION_KIND_").lower()
    data["kind"] = kind
    data.pop("read", None)
    body = {"type": f"notification.{kind}", "timestamp": data["createTime"], "data": data}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def secret_bytes(secret: str) -> bytes | None:
    """Read a secret: base64 behind "whsec_", else as it is; None if that is no base64."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return None


def sign(secret: str, message_id: str, stamp: int, body: bytes) -> str:
    """Sign a message."""
    signed = f"{message_id}.{stamp}.".encode() + body
    digest = hmac.new(secret_bytes(secret) or b"", signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"
