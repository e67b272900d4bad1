"""What a request must be like; what is not, is told field by field."""

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from urllib.parse import urlsplit

from gaggle.notification.v1 import notification_pb2
from gaggle.notification.v1 import notification_service_pb2 as api
from services.notification.domain import MAX_BODY_BYTES, MAX_TITLE_BYTES
from services.notification.webhook import allowed, literal_address, secret_bytes
from services.runtime.times import find_zone, parse_time_of_day
from services.runtime.validation import Violations

MAX_IDS = 100
_MAX_ADDRESS_BYTES = 254
_MAX_LOCAL_BYTES = 64
_MAX_URL_BYTES = 2000
_SECRET_BYTES = range(24, 129)
_MAX_TIMES = 24
_MAX_TYPE_BYTES = 64
_MAX_SUBJECT_BYTES = 128
_MAILBOX = re.compile(
    r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+)*"
    r"@([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
)
_NOT_TIME = "must be a time of day, 09:00"
_NOT_KIND = "must be a kind"

Networks = Sequence[IPv4Network | IPv6Network]


def mark_read(request: api.MarkReadRequest) -> None:
    """Check MarkRead."""
    violations = _requested(request.request_id)
    ways = [bool(request.notification_ids), bool(request.through_sequence), request.all]
    violations.check(ok=sum(ways) == 1, field="notification_ids", what="give ids, or through_sequence, or all")
    _ids(violations, "notification_ids", request.notification_ids)
    violations.raise_if_any()


def redrive(request: api.RedriveParkedRequest) -> None:
    """Check RedriveParked."""
    violations = Violations()
    violations.check(ok=bool(request.ids) != request.all, field="ids", what="give ids, or all")
    _ids(violations, "ids", request.ids)
    violations.raise_if_any()


def send(request: api.SendNotificationRequest) -> None:
    """Check SendNotification."""
    violations = _requested(request.request_id)
    violations.check(ok=_is_kind(request.kind), field="kind", what=_NOT_KIND)
    violations.check(ok=bool(request.title.strip()), field="title", what="must be set")
    for field, most in (
        ("title", MAX_TITLE_BYTES),
        ("body", MAX_BODY_BYTES),
        ("subject_type", _MAX_TYPE_BYTES),
        ("subject_id", _MAX_SUBJECT_BYTES),
    ):
        ok = len(getattr(request, field).encode()) <= most
        violations.check(ok=ok, field=field, what=f"at most {most} bytes")
    violations.raise_if_any()


def preferences(request: api.SetPreferencesRequest, networks: Networks) -> None:
    """Check SetPreferences; `networks` are those where webhooks may be though they are not public."""
    violations = _requested(request.request_id)
    if request.email_address:
        address = request.email_address
        ok = len(address.encode()) <= _MAX_ADDRESS_BYTES and len(address.partition("@")[0]) <= _MAX_LOCAL_BYTES
        ok = ok and _MAILBOX.fullmatch(address) is not None
        violations.check(ok=ok, field="email_address", what="must be one mailbox, ann@example.org")
    if request.time_zone:
        ok = find_zone(request.time_zone) is not None
        violations.check(ok=ok, field="time_zone", what="must be a zone of the IANA's names")
    if request.HasField("webhook"):
        _webhook(violations, request.webhook, networks)
    _quiet_hours(violations, request.quiet_hours)
    _digest(violations, request.digest)
    _kinds(violations, "kinds", [one.kind for one in request.kinds], suffix=".kind")
    violations.raise_if_any()


def _webhook(violations: Violations, webhook: notification_pb2.Webhook, networks: Networks) -> None:
    url, secret = webhook.url, webhook.secret
    if not url:
        violations.check(ok=not secret, field="webhook.secret", what="goes with a URL")
        return
    ok = len(url.encode()) <= _MAX_URL_BYTES
    violations.check(ok=ok, field="webhook.url", what=f"at most {_MAX_URL_BYTES} bytes")
    field = "webhook.url"
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        violations.check(ok=False, field=field, what="must be a URL, https://example.org/hook")
        return
    schemes = {"https", "http"} if networks else {"https"}
    ok = parts.scheme in schemes and bool(host) and url.isascii() and url.isprintable() and " " not in url
    violations.check(ok=ok, field=field, what="must be a URL, https://example.org/hook")
    violations.check(ok="@" not in parts.netloc, field=field, what="must hold no user and no password")
    address = literal_address(host)
    inside = (address is not None and not allowed(address, parts.scheme, networks)) or (
        not networks and (host == "localhost" or host.endswith(".localhost"))
    )
    violations.check(ok=not inside, field=field, what="must be a public address")
    if secret:
        raw = secret_bytes(secret)
        ok = secret.isascii() and raw is not None and len(raw) in _SECRET_BYTES
        violations.check(ok=ok, field="webhook.secret", what="must be 24 to 128 bytes of ASCII, or whsec_ and base64")


def _quiet_hours(violations: Violations, hours: notification_pb2.QuietHours) -> None:
    if hours.start or hours.end:
        for field in ("start", "end"):
            ok = parse_time_of_day(getattr(hours, field)) is not None
            violations.check(ok=ok, field=f"quiet_hours.{field}", what=_NOT_TIME)
    _kinds(violations, "quiet_hours.exempt_kinds", hours.exempt_kinds)


def _digest(violations: Violations, digest: notification_pb2.Digest) -> None:
    ok = len(digest.times_of_day) <= _MAX_TIMES
    violations.check(ok=ok, field="digest.times_of_day", what=f"at most {_MAX_TIMES}")
    for place, one in enumerate(digest.times_of_day):
        field = f"digest.times_of_day[{place}]"
        violations.check(ok=parse_time_of_day(one) is not None, field=field, what=_NOT_TIME)
    _kinds(violations, "digest.kinds", digest.kinds)


def _kinds(violations: Violations, field: str, kinds: Sequence[int], *, suffix: str = "") -> None:
    seen: set[int] = set()
    for place, kind in enumerate(kinds):
        at = f"{field}[{place}]{suffix}"
        violations.check(ok=_is_kind(kind), field=at, what=_NOT_KIND)
        violations.check(ok=kind not in seen, field=at, what="is there twice")
        seen.add(kind)


def _is_kind(kind: int) -> bool:
    return kind != 0 and kind in notification_pb2.NotificationKind.values()


def _ids(violations: Violations, field: str, ids: Sequence[str]) -> None:
    violations.check(ok=len(ids) <= MAX_IDS, field=field, what=f"at most {MAX_IDS}")
    seen: set[str] = set()
    for place, one in enumerate(ids):
        violations.id(f"{field}[{place}]", one, required=True)
        violations.check(ok=one not in seen, field=f"{field}[{place}]", what="is there twice")
        seen.add(one)


def _requested(request_id: str) -> Violations:
    violations = Violations()
    violations.id("request_id", request_id, required=False)
    return violations
