"""Settings of the conversation service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class ConversationSettings(ServiceSettings):
    """What the conversation service is told beside the common settings."""

    window_messages: int = Field(default=50, ge=1, le=1000)
    """What ListMessages gives where the caller names no page_size."""

    window_staleness_seconds: float = Field(default=5.0, ge=0)
    """How old a window in memory may be that answers a read with `min_sequence`; 0: none answers."""

    cached_window_bytes: int = Field(default=32 * 1024 * 1024, ge=0)
    """Windows kept in memory, for such reads and for appends that need not read; 0: none is kept."""

    default_max_messages: int = Field(default=0, ge=0, le=1_000_000)
    """Retention of a conversation that names none; 0: all messages are kept."""

    watch_poll_seconds: float = Field(default=2.0, gt=0)
    """How long a watcher may miss a change whose hint was lost."""

    sweep_seconds: float = Field(default=60.0, gt=0)
    """How often conversations past their time to live are looked for."""

    hints_topic: str = "conversation-hints"
    """Topic of the fan-out component that wakes watchers in other replicas."""

    audit_app: str = "audit"
    """App id, without the mesh's suffix, of the service with the read model."""
