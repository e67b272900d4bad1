"""What a request must be before anything is read for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from gaggle.extension.v1 import extension_pb2
from services.extension import domain
from services.runtime.errors import TooLargeError
from services.runtime.validation import Violations

MAX_CONFIG_BYTES = 256 * 1024
MAX_NAME_BYTES = 128
MAX_DESCRIPTION_BYTES = 4096
MAX_TOOLS = 256
MAX_ARGS = 256
MAX_VARIABLES = 64
MAX_ARGUMENTS_BYTES = 1024 * 1024
MAX_TOOL_NAME_BYTES = 256
_MAX_TIMEOUT_SECONDS = 24 * 3600
_NANOSECONDS = 1e9


def named(request: Any) -> Violations:
    """Check which extension is meant, and the request id where there is one."""
    violations = Violations()
    if "request_id" in request.DESCRIPTOR.fields_by_name:
        violations.id("request_id", request.request_id, required=False)
    if "name" not in request.DESCRIPTOR.fields_by_name:
        violations.id("extension_id", request.extension_id, required=True)
    elif request.WhichOneof("extension") == "name":
        _text(violations, "name", request.name, MAX_NAME_BYTES, required=True)
        violations.check(ok=bool(domain.key_of(request.name)), field="name", what="must not be white space alone")
    else:
        violations.id("extension_id", request.extension_id, required=True)
    return violations


def config(violations: Violations, wanted: extension_pb2.ExtensionConfig) -> None:
    """Check a configuration. Raises TooLargeError."""
    if wanted.ByteSize() > MAX_CONFIG_BYTES:
        raise TooLargeError("the configuration in bytes", size=wanted.ByteSize(), limit=MAX_CONFIG_BYTES)
    _text(violations, "config.name", wanted.name, MAX_NAME_BYTES, required=True)
    violations.check(ok=bool(domain.key_of(wanted.name)), field="config.name", what="must not be white space alone")
    _text(violations, "config.description", wanted.description, MAX_DESCRIPTION_BYTES)
    violations.check(
        ok=len(wanted.available_tools) <= MAX_TOOLS, field="config.available_tools", what=f"at most {MAX_TOOLS}"
    )
    if wanted.extra_json:
        _object(violations, "config.extra_json", wanted.extra_json)
    kind = domain.type_of(wanted)
    violations.check(ok=bool(kind), field="config.type", what="say stdio, streamable_http, builtin, ...")
    if kind in domain.RUNNABLE:
        envs, env_keys = domain.env_of(wanted)
        _environment(violations, f"config.{kind}", envs, env_keys)
    if kind in {"stdio", "streamable_http", "builtin", "inline_python"}:
        _timeout(violations, f"config.{kind}.timeout", getattr(wanted, kind))
    check = _CHECKS.get(kind)
    if check is not None:
        check(violations, getattr(wanted, kind))


def _stdio(violations: Violations, wanted: extension_pb2.StdioConfig) -> None:
    _text(violations, "config.stdio.cmd", wanted.cmd, 4096, required=True)
    violations.check(ok=len(wanted.args) <= MAX_ARGS, field="config.stdio.args", what=f"at most {MAX_ARGS}")
    for place, one in enumerate(wanted.args):
        _text(violations, f"config.stdio.args[{place}]", one, MAX_CONFIG_BYTES)
    _text(violations, "config.stdio.cwd", wanted.cwd, 4096)


def _http(violations: Violations, wanted: extension_pb2.StreamableHttpConfig) -> None:
    _uri(violations, "config.streamable_http.uri", wanted.uri)
    field = "config.streamable_http.headers"
    violations.check(ok=len(wanted.headers) <= MAX_VARIABLES, field=field, what=f"at most {MAX_VARIABLES}")
    for name, value in wanted.headers.items():
        ok = bool(name) and all(one.isascii() and (one.isalnum() or one in "!#$%&'*+-.^_`|~") for one in name)
        violations.check(ok=ok, field=f"{field}[{name}]", what="is no name of a header (RFC 9110)")
        ok = all(one == "\t" or (one >= " " and one != "\x7f") for one in value)
        violations.check(ok=ok, field=f"{field}[{name}]", what="must not hold control characters")


def _frontend(violations: Violations, wanted: extension_pb2.FrontendConfig) -> None:
    field = "config.frontend.tools_json"
    violations.check(ok=len(wanted.tools_json) <= MAX_TOOLS, field=field, what=f"at most {MAX_TOOLS}")
    for place, text in enumerate(wanted.tools_json):
        body = _object(violations, f"{field}[{place}]", text)
        if body is not None:
            ok = isinstance(body.get("name"), str) and bool(body["name"])
            violations.check(ok=ok, field=f"{field}[{place}].name", what="must be set")


def _sse(violations: Violations, wanted: extension_pb2.SseConfig) -> None:
    if wanted.HasField("uri") and wanted.uri:
        _uri(violations, "config.sse.uri", wanted.uri)


def _inline_python(violations: Violations, wanted: extension_pb2.InlinePythonConfig) -> None:
    violations.check(ok=bool(wanted.code), field="config.inline_python.code", what="must be set")


_CHECKS: dict[str, Any] = {
    "stdio": _stdio,
    "streamable_http": _http,
    "frontend": _frontend,
    "sse": _sse,
    "inline_python": _inline_python,
}


def _environment(violations: Violations, field: str, envs: Mapping[str, str], env_keys: Sequence[str]) -> None:
    violations.check(
        ok=len(envs) + len(env_keys) <= MAX_VARIABLES, field=f"{field}.envs", what=f"at most {MAX_VARIABLES} in all"
    )
    for where, names in ((f"{field}.envs", list(envs)), (f"{field}.env_keys", list(env_keys))):
        for name in names:
            ok = name.isascii() and name.isidentifier()
            violations.check(ok=ok, field=f"{where}[{name}]", what="must be letters, digits and underscores")
            violations.check(
                ok=not domain.changes_loading(name),
                field=f"{where}[{name}]",
                what="changes how programs load, and is not taken",
            )
    for name, value in envs.items():
        violations.check(ok="\0" not in value, field=f"{field}.envs[{name}]", what="must not hold U+0000")


def _uri(violations: Violations, field: str, uri: str) -> None:
    _text(violations, field, uri, 4096, required=True)
    try:
        parts = urlsplit(uri)
        ok = parts.scheme in {"http", "https"} and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        ok = False
    violations.check(ok=ok, field=field, what="must begin with http:// or https:// and name a host")


def _timeout(violations: Violations, field: str, body: Any) -> None:
    if body.HasField("timeout"):
        duration(violations, field, body.timeout)


def duration(violations: Violations, field: str, wanted: Any) -> None:
    """Check a time limit."""
    seconds = wanted.ToNanoseconds() / _NANOSECONDS
    ok = 0 < seconds <= _MAX_TIMEOUT_SECONDS
    violations.check(ok=ok, field=field, what=f"must be more than 0 and at most {_MAX_TIMEOUT_SECONDS} seconds")


def _text(violations: Violations, field: str, text: str, most: int, *, required: bool = False) -> None:
    violations.check(ok=bool(text) or not required, field=field, what="must be set")
    violations.check(ok=len(text.encode()) <= most, field=field, what=f"at most {most} bytes")
    violations.check(ok="\0" not in text, field=field, what="must not hold U+0000")


def _object(violations: Violations, field: str, text: str) -> dict[str, Any] | None:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        violations.check(ok=False, field=field, what=f"is no JSON: {error}")
        return None
    violations.check(ok=isinstance(body, dict), field=field, what="must be a JSON object")
    return body if isinstance(body, dict) else None
