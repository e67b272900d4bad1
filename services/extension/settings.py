"""Settings of the extension service."""

import shlex
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import NoDecode

from services.runtime.settings import ServiceSettings

_Words = Annotated[tuple[str, ...], NoDecode]
_Commands = Annotated[tuple[tuple[str, ...], ...], NoDecode]


class ExtensionSettings(ServiceSettings):
    """What the extension service is told beside the common settings."""

    stdio_commands: _Commands = ()
    """The commands that may be run, separated by `;`, for example `uvx mcp-server-time; npx -y @scope/server`. An
    extension may run one if its command and arguments begin with these words; what follows is its own. The first word
    is a name, looked up in `stdio_path`, or an absolute path. None by default: nothing is run."""

    acting_commands: _Commands = ()
    """Commands of the deployment's own that act for the user who calls, separated by `;`: `gaggle mcp --on-behalf`. An
    extension may run one if its command and arguments are exactly these words. With each call the server gets a token
    of this service for that user, in `_meta`; it reaches the mesh by this service's sidecar. The first word is looked
    up beside this service's own Python before `stdio_path`."""

    stdio_path: str = "/usr/local/bin:/usr/bin:/bin"
    """Where names of commands are looked up, and the PATH that child processes get."""

    stdio_home: str = ""
    """The HOME that child processes get, for package runners that cache; empty: the process's own directory, which is
    removed with it."""

    http_allowed_hosts: _Words = ()
    """Hosts, separated by commas, that may be connected to although their addresses are not public, as `name` or
    `name:port`. Written as the extension's URI has them."""

    secret_prefix: str = "extension-"  # noqa: S105 - a name
    """An extension's env key GITHUB_TOKEN is the secret `extension-github-token` of the secret store."""

    user_secrets: _Words = ()
    """Env keys, separated by commas, that users' own extensions may ask for; shared ones may ask for any."""

    start_timeout_seconds: float = Field(default=60.0, gt=0)
    """How long a server may take to start and introduce itself."""

    tool_timeout_seconds: float = Field(default=300.0, gt=0)
    """The time of a tool call where neither the call nor the extension names one."""

    max_tool_timeout_seconds: float = Field(default=3600.0, gt=0)
    """No call gets more."""

    max_result_bytes: int = Field(default=768 * 1024, ge=1024, le=1024 * 1024)
    """A larger result is refused. A message of a conversation, which a result becomes a part of, holds 1 MiB."""

    max_line_bytes: int = Field(default=4 * 1024 * 1024, ge=64 * 1024)
    """What a server may send in one piece; more, and the connection is closed."""

    max_connections: int = Field(default=200, ge=1)
    """Live connections of one replica."""

    max_connections_per_user: int = Field(default=20, ge=1)
    """Live connections of one user at one replica."""

    max_calls_per_connection: int = Field(default=16, ge=1)
    """Calls under way at once on one connection."""

    idle_seconds: float = Field(default=900.0, gt=0)
    """A connection that nobody uses for so long is closed; the next call makes it again."""

    check_seconds: float = Field(default=5.0, gt=0)
    """How often a replica looks whether its connections are still wanted."""

    restart_seconds: float = Field(default=1.0, gt=0)
    """The pause before a server that died is started again; doubled with each death in a row, up to a minute."""

    max_failures: int = Field(default=8, ge=1)
    """After so many deaths in a row it is left alone."""

    call_grace_seconds: float = Field(default=10.0, ge=0)
    """How long a call with a call_id goes on without its caller."""

    answer_seconds: float = Field(default=600.0, ge=0)
    """How long the answer to a call_id is kept in memory."""

    answers_bytes: int = Field(default=64 * 1024 * 1024, ge=0)
    """What all such answers of one replica may take."""

    peer_address: str = ""
    """Where the other replicas of this service reach this one, for example `10.1.2.3:50106`; empty: `host:port`, which
    is right where all replicas share a machine."""

    call_timeout_seconds: float = Field(default=90.0, gt=0)
    """A unary call's own limit; loading may take a minute."""

    @field_validator("acting_commands", "stdio_commands", mode="before")
    @classmethod
    def _commands(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(tuple(words) for one in value.split(";") if (words := shlex.split(one)))

    @field_validator("http_allowed_hosts", "user_secrets", mode="before")
    @classmethod
    def _words(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(word for one in value.split(",") if (word := one.strip()))

    @property
    def replica(self) -> str:
        """Where the other replicas reach this one."""
        return self.peer_address or f"{self.host}:{self.port}"
