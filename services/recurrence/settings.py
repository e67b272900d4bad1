"""Settings of the recurrence service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class RecurrenceSettings(ServiceSettings):
    """What the recurrence service is told beside the common settings."""

    task_app: str = "task"
    """App id, without the mesh's suffix, of the service that keeps tasks."""

    sweep_seconds: float = Field(default=300.0, gt=0)
    """How often to look for completed tasks whose event did not arrive."""
