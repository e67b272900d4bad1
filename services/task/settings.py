"""Settings of the task service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class TaskSettings(ServiceSettings):
    """What the task service is told beside the common settings."""

    max_open_tasks: int = Field(default=10_000, ge=1, le=10_000)
    """Open tasks that a user may have."""

    reminder_app: str = "reminder"
    """App id, without the mesh's suffix, of the service that reminds of tasks."""

    reminder_timeout_seconds: float = Field(default=5.0, gt=0)
    """How long to wait for it, after the task's own change has been answered."""
