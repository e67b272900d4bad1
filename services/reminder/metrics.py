"""What an operator wants to know of reminders."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_LATENESS_SECONDS = (0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600, 3600, 86_400)


class ReminderMetrics:
    """Counted by this process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Make them in the process's registry."""
        self.scheduled = Counter("gaggle_reminders_scheduled", "Reminders set, set anew included", registry=registry)
        self.fired = Counter("gaggle_reminders_fired", "Reminders that took effect", ["by"], registry=registry)
        """By "job" or "sweep"."""

        self.lateness = Histogram(
            "gaggle_reminder_lateness_seconds",
            "From a reminder's time to its commit",
            buckets=_LATENESS_SECONDS,
            registry=registry,
        )
        self.missed = Counter("gaggle_reminders_missed", "Reminders given up by their policy", registry=registry)
        self.overdue = Gauge(
            "gaggle_reminders_overdue", "Reminders past their time that the last sweep left", registry=registry
        )
        self.repaired = Counter("gaggle_reminder_repairs", "What the sweep repaired", ["kind"], registry=registry)
        """Kind "overdue", "missing" (a job), "orphaned" (a job or reminder without its task), "diverged" (a task whose
        change had not arrived)."""

        self.jobs_pending = Gauge(
            "gaggle_reminder_jobs_pending", "Jobs to be made or deleted in the scheduler", registry=registry
        )
