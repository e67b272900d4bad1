"""What a request must be before anything is read for it."""

from collections.abc import Mapping

from gaggle.conversation.v1 import conversation_pb2, conversation_service_pb2, message_pb2
from services.runtime.errors import TooLargeError
from services.runtime.validation import Violations

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_APPEND_BYTES = 3 * 1024 * 1024
MAX_RESPONSE_BYTES = 3 * 1024 * 1024
MAX_APPEND_MESSAGES = 500
MAX_PARTS = 256
MAX_TITLE_BYTES = 1024
MAX_NAME_BYTES = 256
MAX_METADATA_ENTRIES = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_SUMMARY_BYTES = 256 * 1024
MAX_RETAINED_MESSAGES = 1_000_000
MIN_TTL_SECONDS = 60
MAX_TTL_SECONDS = 10 * 366 * 24 * 3600


def named(conversation_id: str, request_id: str = "") -> Violations:
    """Check what nearly every request has."""
    violations = Violations()
    violations.id("conversation_id", conversation_id, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


def metadata(violations: Violations, field: str, entries: Mapping[str, str]) -> None:
    """Check free metadata."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
    violations.check(
        ok=len(entries) <= MAX_METADATA_ENTRIES, field=field, what=f"at most {MAX_METADATA_ENTRIES} entries"
    )
    violations.check(ok=size <= MAX_METADATA_BYTES, field=field, what=f"at most {MAX_METADATA_BYTES} bytes in all")
    violations.check(ok="" not in entries, field=field, what="keys must not be empty")


def title(violations: Violations, text: str) -> None:
    """Check a title."""
    violations.check(ok=len(text.encode()) <= MAX_TITLE_BYTES, field="title", what=f"at most {MAX_TITLE_BYTES} bytes")


def retention(violations: Violations, wanted: conversation_pb2.Retention) -> None:
    """Check how long messages are to be kept."""
    violations.check(
        ok=wanted.max_messages <= MAX_RETAINED_MESSAGES,
        field="retention.max_messages",
        what=f"at most {MAX_RETAINED_MESSAGES}",
    )
    if wanted.HasField("ttl"):
        violations.check(
            ok=MIN_TTL_SECONDS <= wanted.ttl.seconds <= MAX_TTL_SECONDS,
            field="retention.ttl",
            what="from one minute to ten years",
        )


def append(request: conversation_service_pb2.AppendMessagesRequest) -> None:
    """Check an append. Raises InvalidArgumentError or TooLargeError."""
    violations = named(request.conversation_id, request.request_id)
    count = len(request.messages)
    violations.check(ok=1 <= count <= MAX_APPEND_MESSAGES, field="messages", what=f"must be 1 to {MAX_APPEND_MESSAGES}")
    seen: set[str] = set()
    for index, message in enumerate(request.messages):
        _message(violations, f"messages[{index}]", message)
        violations.check(
            ok=not message.id or message.id not in seen, field=f"messages[{index}].id", what="must be unique"
        )
        seen.add(message.id)
    violations.raise_if_any()
    total = 0
    for index, message in enumerate(request.messages):
        size = message.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise TooLargeError(f"messages[{index}] in bytes", size=size, limit=MAX_MESSAGE_BYTES)
        total += size
    if total > MAX_APPEND_BYTES:
        raise TooLargeError("the append in bytes", size=total, limit=MAX_APPEND_BYTES)


def _message(violations: Violations, field: str, message: message_pb2.Message) -> None:
    violations.check(
        ok=message.role in message_pb2.Role.values() and message.role != message_pb2.ROLE_UNSPECIFIED,
        field=f"{field}.role",
        what="must be a role",
    )
    violations.check(
        ok=1 <= len(message.content) <= MAX_PARTS, field=f"{field}.content", what=f"must be 1 to {MAX_PARTS} parts"
    )
    for index, part in enumerate(message.content):
        violations.check(
            ok=part.WhichOneof("kind") is not None, field=f"{field}.content[{index}]", what="must have a kind"
        )
    violations.id(f"{field}.id", message.id, required=False)
    violations.check(ok=message.sequence == 0, field=f"{field}.sequence", what="is given by the server")
    violations.check(ok=not message.HasField("create_time"), field=f"{field}.create_time", what="is set by the server")
    violations.check(
        ok=len(message.name.encode()) <= MAX_NAME_BYTES, field=f"{field}.name", what=f"at most {MAX_NAME_BYTES} bytes"
    )
    if message.metadata:
        metadata(violations, f"{field}.metadata", message.metadata)
