"""Settings of the reminder service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class ReminderSettings(ServiceSettings):
    """What the reminder service is told beside the common settings."""

    task_app: str = "task"
    """App id, without the mesh's suffix, of the service that keeps the tasks."""

    check_tasks: bool = True
    """Ask the task service about a task when a reminder is set and again when it fires; false: tasks are kept
    elsewhere, and callers say what there is to say of them."""

    task_patience_seconds: float = Field(default=30.0, ge=0)
    """How late a reminder may become while the task service is away; then it fires unchecked."""

    sweep_binding: str = "reminder-sweep"
    """The cron component that sets the sweep going."""

    sweep_lease_seconds: float = Field(default=60.0, gt=0)
    """After so long without a sweep another process takes it over."""

    horizon_seconds: int = Field(default=600, ge=60, le=86_400)
    """How far ahead the sweep sees to it that what is due has a job."""

    overdue_seconds: float = Field(default=3.0, ge=0.5)
    """How late a reminder is before the sweep fires it in its job's stead."""

    round_tasks: int = Field(default=50, ge=1, le=1000)
    """With how many tasks each sweep goes on in its round through all of them."""
