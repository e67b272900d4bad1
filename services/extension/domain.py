"""What an extension is, and how it changes. Knows neither gRPC nor Dapr."""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.extension.state.v1 import document_pb2
from gaggle.extension.v1 import extension_pb2, extension_service_pb2

SHARED = ""
"""The user id under which shared extensions lie. No user has it: a token's subject is never empty."""

MAX_EXTENSIONS = 256
"""Of one user, and of the shared ones."""

EVENT_REFERENCES = 256
TOMBSTONE_SECONDS = 7 * 24 * 3600
MAX_ERROR_CHARACTERS = 1000
MAX_INSTRUCTIONS_CHARACTERS = 16 * 1024
RUNNABLE = frozenset({"stdio", "streamable_http"})
_LONGEST_PAUSE_SECONDS = 60.0

State = extension_pb2.ConnectionState
UNLOADED = extension_pb2.CONNECTION_STATE_UNLOADED
LOADED = extension_pb2.CONNECTION_STATE_LOADED
RESTARTING = extension_pb2.CONNECTION_STATE_RESTARTING
FAILED = extension_pb2.CONNECTION_STATE_FAILED

STATE_NAMES = {UNLOADED: "unloaded", LOADED: "loaded", RESTARTING: "restarting", FAILED: "failed"}

TYPES = {
    extension_service_pb2.EXTENSION_TYPE_STDIO: "stdio",
    extension_service_pb2.EXTENSION_TYPE_STREAMABLE_HTTP: "streamable_http",
    extension_service_pb2.EXTENSION_TYPE_BUILTIN: "builtin",
    extension_service_pb2.EXTENSION_TYPE_PLATFORM: "platform",
    extension_service_pb2.EXTENSION_TYPE_FRONTEND: "frontend",
    extension_service_pb2.EXTENSION_TYPE_INLINE_PYTHON: "inline_python",
    extension_service_pb2.EXTENSION_TYPE_SSE: "sse",
}

_LOADER_NAMES = frozenset(
    {
        # What goose forbids ...
        "PATH", "PATHEXT", "SYSTEMROOT", "WINDIR", "PYTHONPATH", "PYTHONHOME", "NODE_OPTIONS", "RUBYOPT", "GEM_PATH",
        "GEM_HOME", "CLASSPATH", "GO111MODULE", "GOROOT", "APPINIT_DLLS", "SESSIONNAME", "COMSPEC", "TEMP", "TMP",
        "LOCALAPPDATA", "USERPROFILE", "HOMEDRIVE", "HOMEPATH",
        # ... and others of the kind.
        "TMPDIR", "HOME", "SHELL", "IFS", "ENV", "BASH_ENV", "SHELLOPTS", "BASHOPTS", "PROMPT_COMMAND", "PYTHONSTARTUP",
        "PYTHONINSPECT", "PYTHONUSERBASE", "PYTHONEXECUTABLE", "PYTHONBREAKPOINT", "PYTHONWARNINGS", "NODE_PATH",
        "NODE_REPL_EXTERNAL_MODULE", "PERL5LIB", "PERL5OPT", "PERL5DB", "RUBYLIB", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS",
        "JDK_JAVA_OPTIONS", "GCONV_PATH", "LOCPATH", "NLSPATH", "HOSTALIASES", "RES_OPTIONS", "MALLOC_CHECK_",
        "GIT_SSH", "GIT_SSH_COMMAND", "GIT_EXEC_PATH", "GIT_EXTERNAL_DIFF", "GIT_PROXY_COMMAND", "GIT_ASKPASS",
        "SSH_ASKPASS", "EDITOR", "VISUAL", "PAGER",
    }
)  # fmt: skip
_LOADER_PREFIXES = ("LD_", "DYLD_", "GLIBC_", "BASH_FUNC_", "GIT_CONFIG", "NPM_CONFIG_", "UV_", "PIP_", "YARN_")
_REFERENCE = re.compile(r"\$(?:\{([A-Za-z_][A-Za-z0-9_]*)\}|([A-Za-z_][A-Za-z0-9_]*))")


def key_of(name: str) -> str:
    """Give the key of a name, as goose makes it: no white space, lower case, `_` for what is not [a-z0-9_-]."""
    return "".join(
        one if (one.isascii() and one.isalnum()) or one in "_-" else "_" for one in name if not one.isspace()
    ).lower()


def changes_loading(name: str) -> bool:
    """Tell whether an environment variable of this name changes how programs load or what they run."""
    upper = name.upper()
    return upper in _LOADER_NAMES or upper.startswith(_LOADER_PREFIXES)


def type_of(config: extension_pb2.ExtensionConfig) -> str:
    """Give goose's tag of a configuration; empty: it has none."""
    return config.WhichOneof("type") or ""


def secret_name(prefix: str, env_key: str) -> str:
    """Name the secret behind an env key; Kubernetes takes neither capitals nor underscores."""
    return prefix + env_key.lower().replace("_", "-")


def env_of(config: extension_pb2.ExtensionConfig) -> tuple[Mapping[str, str], Sequence[str]]:
    """Give what is declared of an environment: values, and keys whose values are secrets."""
    kind = type_of(config)
    if kind not in RUNNABLE:
        return {}, ()
    body = getattr(config, kind)
    return body.envs, body.env_keys


def substitute(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of ${NAME} and $NAME; a name that has none is left as it is."""
    return _REFERENCE.sub(lambda found: values.get(found[1] or found[2], found[0]), text)


def pause_seconds(first: float, failures: int) -> float:
    """Give the pause before the next start: `first`, doubled with each death in a row, at most a minute."""
    return float(min(first * 2 ** min(failures - 1, 16), _LONGEST_PAUSE_SECONDS))


def timestamp(moment: datetime) -> Timestamp:
    """Give the protobuf form of a time."""
    result = Timestamp()
    result.FromDatetime(moment)
    return result


def summary(registration: document_pb2.Registration) -> dict[str, Any]:
    """Give what every event says of an extension."""
    return {
        "name": registration.config.name,
        "key": registration.key,
        "type": type_of(registration.config),
        "description": registration.config.description,
        "enabled": registration.enabled,
        "shared": registration.shared,
    }


def payload(message: Any, registration: document_pb2.Registration) -> dict[str, Any]:
    """Give an event's data: what is the same in all of them, and `message`'s own."""
    found: dict[str, Any] = summary(registration) | json_format.MessageToDict(message)
    return found


def describe(
    registration: document_pb2.Registration, own: document_pb2.Head | None, extension_id: str, *, reveal: bool
) -> extension_pb2.Extension:
    """Give an extension as its user sees it; with `reveal`, a shared one's values too."""
    shown = extension_pb2.Extension(
        id=extension_id,
        config=registration.config,
        enabled=registration.enabled,
        shared=registration.shared,
        key=registration.key,
        create_time=registration.create_time,
        update_time=registration.update_time,
        etag=str(registration.version),
    )
    if own is not None and own.HasField("connection"):
        shown.connection.CopyFrom(own.connection)
    shown.connection.state = effective_state(registration, own)
    if registration.shared and not reveal:
        shown.redacted = hide(shown.config)
    return shown


def effective_state(registration: document_pb2.Registration, own: document_pb2.Head | None) -> "State.ValueType":
    """Tell whether a user has it loaded; one that is disabled is loaded for nobody."""
    if own is None or not registration.enabled:
        return UNLOADED
    return own.connection.state or UNLOADED


def hide(config: extension_pb2.ExtensionConfig, *, code: bool = False) -> bool:
    """Take away the values of environment and headers, and with `code` code; tells whether there were any."""
    found = False
    kind = type_of(config)
    maps: list[Any] = []
    if kind in RUNNABLE:
        body = getattr(config, kind)
        maps = [body.envs, *([body.headers] if kind == "streamable_http" else [])]
    for values in maps:
        for name in list(values):
            values[name] = ""
            found = True
    if code and kind == "inline_python":
        config.inline_python.code = ""
    return found


def allows(config: extension_pb2.ExtensionConfig, tool_name: str) -> bool:
    """Tell whether a tool may be listed and called."""
    return not config.available_tools or tool_name in config.available_tools


def loaded(
    connection: extension_pb2.Connection, server: extension_pb2.ServerInfo, now: datetime, *, failures: int
) -> None:
    """Note that it is connected; `failures` deaths came before, 0 if a caller asked for it."""
    if connection.state not in (LOADED, RESTARTING):
        connection.load_time.CopyFrom(timestamp(now))
    connection.state = LOADED
    connection.server.CopyFrom(server)
    connection.failures = failures
    connection.ClearField("retry_time")


def died(
    connection: extension_pb2.Connection, error: str, now: datetime, *, failures: int, first_pause: float, most: int
) -> None:
    """Note a death, and when it is started again, if at all."""
    connection.last_error = error[:MAX_ERROR_CHARACTERS]
    connection.last_error_time.CopyFrom(timestamp(now))
    connection.failures = failures
    connection.ClearField("retry_time")
    if failures > most:
        connection.state = FAILED
        return
    connection.state = RESTARTING
    connection.retry_time.CopyFrom(timestamp(now + timedelta(seconds=pause_seconds(first_pause, failures))))


def seconds_until(moment: Timestamp, now: datetime) -> float:
    """Give the seconds until a time; 0 if it has passed."""
    return max(0.0, (moment.ToDatetime(UTC) - now).total_seconds())
