"""What a request must be before anything is read for it."""

import json
import time
from collections.abc import Mapping, Sequence

import jsonschema

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import session_pb2
from services.runtime.errors import TooLargeError
from services.runtime.validation import Violations

MAX_MESSAGE_BYTES = 512 * 1024
MAX_PARTS = 256
MAX_SYSTEM_BYTES = 256 * 1024
MAX_SCHEMA_BYTES = 256 * 1024
MAX_EXTENSIONS = 32
MAX_NAME_BYTES = 1024
MAX_PATH_BYTES = 4096
MAX_TYPE_BYTES = 64
MAX_MODEL_BYTES = 256
MAX_STEPS = 200
MAX_TIMEOUT_SECONDS = 86_400
MAX_BUDGET = 10_000_000
MAX_METADATA_ENTRIES = 64
MAX_METADATA_BYTES = 16 * 1024
MAX_REASON_BYTES = 1024
MAX_APPROVAL_TOOLS = 64
MIN_EXPIRE_SECONDS = 10
MAX_EXPIRE_SECONDS = 30 * 86_400
MAX_EXTRA_BYTES = 512 * 1024
MAX_IMPORTED_LINES = 500
MAX_IMPORTED_DAYS = 40
# What a person may say; the rest is the service's own to write.
SAID = frozenset({"text", "image"})


def chat(request: api.ChatRequest) -> None:
    """Check a message to be answered. Raises InvalidArgumentError or TooLargeError."""
    violations = Violations()
    violations.id("request_id", request.request_id, required=False)
    violations.id("conversation_id", request.conversation_id, required=False)
    violations.id("session_id", request.session_id, required=False)
    violations.check(
        ok=not request.after_position or bool(request.request_id),
        field="after_position",
        what="needs the request_id that began the turn",
    )
    violations.check(ok=request.after_position < 1 << 63, field="after_position", what="is no position")
    count = len(request.message)
    violations.check(ok=1 <= count <= MAX_PARTS, field="message", what=f"must be 1 to {MAX_PARTS} parts")
    for index, part in enumerate(request.message):
        kind = part.WhichOneof("kind")
        violations.check(ok=kind in SAID, field=f"message[{index}]", what="must be a text or an image")
    _model(violations, "model", request.model)
    _extensions(violations, "extensions", request.extensions)
    _options(violations, request.options)
    violations.raise_if_any()
    size = sum(part.ByteSize() for part in request.message)
    if size > MAX_MESSAGE_BYTES:
        raise TooLargeError("the message in bytes", size=size, limit=MAX_MESSAGE_BYTES)


def _options(violations: Violations, options: api.ChatOptions) -> None:
    _bytes(violations, "options.system_prompt", options.system_prompt, MAX_SYSTEM_BYTES)
    if options.HasField("temperature"):
        _temperature(violations, "options.temperature", options.temperature)
    violations.check(ok=options.max_steps <= MAX_STEPS, field="options.max_steps", what=f"at most {MAX_STEPS}")
    violations.check(
        ok=options.timeout_seconds <= MAX_TIMEOUT_SECONDS,
        field="options.timeout_seconds",
        what=f"at most {MAX_TIMEOUT_SECONDS}",
    )
    violations.check(
        ok=options.context_budget <= MAX_BUDGET, field="options.context_budget", what=f"at most {MAX_BUDGET}"
    )
    violations.check(
        ok=options.max_output_tokens <= MAX_BUDGET, field="options.max_output_tokens", what=f"at most {MAX_BUDGET}"
    )
    _approval(violations, "options.approval", options.approval)
    metadata(violations, "options.metadata", options.metadata)
    if options.response_schema_json:
        _schema(violations, "options.response_schema_json", options.response_schema_json)


def _schema(violations: Violations, field: str, text: str) -> None:
    _bytes(violations, field, text, MAX_SCHEMA_BYTES)
    try:
        schema = json.loads(text)
        violations.check(ok=isinstance(schema, dict), field=field, what="must be a JSON object")
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except (ValueError, RecursionError):
        violations.check(ok=False, field=field, what="is not JSON")
    except (jsonschema.SchemaError, TypeError, AttributeError):
        violations.check(ok=False, field=field, what="is no JSON schema")


def _approval(violations: Violations, field: str, approval: session_pb2.ApprovalPolicy) -> None:
    violations.check(
        ok=approval.mode in session_pb2.ApprovalMode.values(), field=f"{field}.mode", what="must be a mode"
    )
    violations.check(
        ok=len(approval.tools) <= MAX_APPROVAL_TOOLS and all(0 < len(one) <= MAX_NAME_BYTES for one in approval.tools),
        field=f"{field}.tools",
        what=f"at most {MAX_APPROVAL_TOOLS} names",
    )
    violations.check(
        ok=not approval.expire_seconds or MIN_EXPIRE_SECONDS <= approval.expire_seconds <= MAX_EXPIRE_SECONDS,
        field=f"{field}.expire_seconds",
        what=f"from {MIN_EXPIRE_SECONDS} to {MAX_EXPIRE_SECONDS}",
    )


def session_settings(violations: Violations, settings: session_pb2.SessionSettings) -> None:
    """Check what a session's turns take."""
    _model(violations, "settings.model", settings.model)
    _bytes(violations, "settings.system_prompt", settings.system_prompt, MAX_SYSTEM_BYTES)
    _extensions(violations, "settings.extensions", settings.extensions)
    if settings.HasField("temperature"):
        _temperature(violations, "settings.temperature", settings.temperature)
    violations.check(ok=settings.max_steps <= MAX_STEPS, field="settings.max_steps", what=f"at most {MAX_STEPS}")
    _approval(violations, "settings.approval", settings.approval)


def create_session(request: api.CreateSessionRequest) -> None:
    """Check a new session. Raises InvalidArgumentError."""
    violations = Violations()
    violations.id("request_id", request.request_id, required=False)
    violations.id("session_id", request.session_id, required=False)
    violations.id("conversation_id", request.conversation_id, required=False)
    _bytes(violations, "name", request.name, MAX_NAME_BYTES)
    _bytes(violations, "working_dir", request.working_dir, MAX_PATH_BYTES)
    _bytes(violations, "session_type", request.session_type, MAX_TYPE_BYTES)
    session_settings(violations, request.settings)
    metadata(violations, "metadata", request.metadata)
    _extra(violations, request.extra_json)
    violations.raise_if_any()


def update_session(request: api.UpdateSessionRequest) -> None:
    """Check a change of a session. Raises InvalidArgumentError."""
    violations = named_session(request.session_id, request.request_id)
    _bytes(violations, "name", request.name, MAX_NAME_BYTES)
    violations.id("conversation_id", request.conversation_id, required=False)
    session_settings(violations, request.settings)
    metadata(violations, "metadata", request.metadata.entries)
    _bytes(violations, "working_dir", request.working_dir, MAX_PATH_BYTES)
    _bytes(violations, "session_type", request.session_type, MAX_TYPE_BYTES)
    _extra(violations, request.extra_json)
    violations.raise_if_any()


def import_usage(request: api.ImportUsageRequest) -> None:
    """Check lines of another ledger. Raises InvalidArgumentError."""
    violations = named_session(request.session_id, request.request_id)
    violations.check(
        ok=len(request.entries) <= MAX_IMPORTED_LINES, field="entries", what=f"at most {MAX_IMPORTED_LINES}"
    )
    last, days = 0, set()
    for index, entry in enumerate(request.entries):
        place = f"entries[{index}]"
        violations.check(ok=entry.source_id > last, field=f"{place}.source_id", what="must be set, and ascend")
        # Erasure walks the days up to tomorrow: there must be none beyond.
        tomorrow = time.time() + 86_400
        violations.check(
            ok=0 < entry.time.seconds < tomorrow, field=f"{place}.time", what="must be set, and not in the future"
        )
        _bytes(violations, f"{place}.model", entry.model, MAX_MODEL_BYTES)
        _bytes(violations, f"{place}.cost_source", entry.cost_source, MAX_TYPE_BYTES)
        violations.check(ok=not entry.turn_id, field=f"{place}.turn_id", what="is of turns of this service alone")
        last = entry.source_id
        days.add(entry.time.seconds // 86_400)
    violations.check(ok=len(days) <= MAX_IMPORTED_DAYS, field="entries", what=f"of at most {MAX_IMPORTED_DAYS} days")
    violations.raise_if_any()


def _extra(violations: Violations, text: str) -> None:
    _bytes(violations, "extra_json", text, MAX_EXTRA_BYTES)
    if not text:
        return
    try:
        violations.check(ok=isinstance(json.loads(text), dict), field="extra_json", what="must be a JSON object")
    except (ValueError, RecursionError):
        violations.check(ok=False, field="extra_json", what="is not JSON")


def named_session(session_id: str, request_id: str = "") -> Violations:
    """Check what requests about a session have."""
    violations = Violations()
    violations.id("session_id", session_id, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


def named_turn(turn_id: str, request_id: str = "") -> Violations:
    """Check what requests about a turn have."""
    violations = Violations()
    violations.id("turn_id", turn_id, required=True)
    violations.id("request_id", request_id, required=False)
    return violations


def call(turn_id: str, request_id: str, call_id: str, reason: str = "") -> None:
    """Check a decision on a tool call. Raises InvalidArgumentError."""
    violations = named_turn(turn_id, request_id)
    violations.check(ok=0 < len(call_id.encode()) <= MAX_MODEL_BYTES, field="call_id", what="must be set")
    _bytes(violations, "reason", reason, MAX_REASON_BYTES)
    violations.raise_if_any()


def policy(request: api.SetTurnPolicyRequest) -> None:
    """Check a policy. Raises InvalidArgumentError."""
    violations = Violations()
    violations.id("conversation_id", request.conversation_id, required=True)
    violations.id("request_id", request.request_id, required=False)
    violations.check(ok=request.policy in api.TurnPolicy.values(), field="policy", what="must be a policy")
    violations.raise_if_any()


def metadata(violations: Violations, field: str, entries: Mapping[str, str]) -> None:
    """Check free metadata."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in entries.items())
    violations.check(
        ok=len(entries) <= MAX_METADATA_ENTRIES, field=field, what=f"at most {MAX_METADATA_ENTRIES} entries"
    )
    violations.check(ok=size <= MAX_METADATA_BYTES, field=field, what=f"at most {MAX_METADATA_BYTES} bytes in all")
    violations.check(ok="" not in entries, field=field, what="keys must not be empty")


def _bytes(violations: Violations, field: str, text: str, most: int) -> None:
    violations.check(ok=len(text.encode()) <= most, field=field, what=f"at most {most} bytes")


def _model(violations: Violations, field: str, name: str) -> None:
    _bytes(violations, field, name, MAX_MODEL_BYTES)


def _temperature(violations: Violations, field: str, value: float) -> None:
    violations.check(ok=0 <= value <= 2, field=field, what="from 0 to 2")  # noqa: PLR2004 - what providers take


def _extensions(violations: Violations, field: str, names: Sequence[str]) -> None:
    violations.check(ok=len(names) <= MAX_EXTENSIONS, field=field, what=f"at most {MAX_EXTENSIONS}")
    for index, name in enumerate(names):
        violations.check(ok=0 < len(name.encode()) <= 128, field=f"{field}[{index}]", what="1 to 128 bytes")  # noqa: PLR2004
