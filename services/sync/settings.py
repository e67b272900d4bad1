"""Settings of the sync service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class SyncSettings(ServiceSettings):
    """What the sync service is told beside the common settings."""

    http_port: int = Field(ge=0, le=65535)
    """The port of the WebSocket, on `host`; 0: any free one."""

    audit_service: str = "audit"
    """App id, without the mesh's suffix, of the service that keeps the log."""

    max_clients: int = Field(default=10_000, ge=1)
    """Streams and sockets at once; more are refused with RESOURCE_EXHAUSTED."""

    max_clients_per_user: int = Field(default=32, ge=1)
    """Of them, one user's."""

    pending_events: int = Field(default=256, ge=1)
    """How many events may wait for a client; with one more it is dropped as too slow."""

    send_timeout_seconds: float = Field(default=20.0, gt=0)
    """How long a client may leave a single message unread, once its connection is full."""

    first_frame_seconds: float = Field(default=10.0, gt=0)
    """How soon after the WebSocket opened its token must come."""

    heartbeat_seconds: float = Field(default=20.0, gt=0)
    """A stream that has nothing to say says so after so long."""

    replay_concurrency: int = Field(default=16, ge=1)
    """How many clients that resume read the log at once; the others wait for their turn."""
