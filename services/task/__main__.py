"""Starts the task service."""

from gaggle.owner.v1 import owner_service_pb2
from gaggle.reminder.v1 import reminder_service_pb2_grpc
from gaggle.task.v1 import occurrence_service_pb2, task_service_pb2
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.erasure import Erasure
from services.runtime.invocation import Peer
from services.runtime.owning import OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run
from services.task.index import Indexes
from services.task.owning import Owner
from services.task.reading import Reader
from services.task.reminding import Reminders
from services.task.servicer import (
    OCCURRENCE_ACCESS,
    OWNER_ACCESS,
    TASK_ACCESS,
    OccurrenceServicer,
    TaskServicer,
)
from services.task.settings import TaskSettings
from services.task.store import TaskStore
from services.task.writing import Writer


def build(runtime: Runtime, settings: TaskSettings) -> Wiring:
    """Put the service together."""
    indexes = Indexes(runtime.state, settings.max_open_tasks)
    store = TaskStore(runtime.state, runtime.outbox, indexes)
    reminders = Reminders(
        Peer(runtime.sidecar, settings.sibling(settings.reminder_app), reminder_service_pb2_grpc.ReminderServiceStub),
        # Not `runtime.tokens.issue`: the tokens are there once the service is ready.
        lambda user_id: runtime.tokens.issue(user_id),  # noqa: PLW0108
        settings.reminder_timeout_seconds,
    )
    store.changed = reminders.changed
    writer = Writer(store)
    owner = Owner(store, indexes, writer)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    tasks = TaskServicer(store, writer, Reader(store, indexes))
    service = task_service_pb2.DESCRIPTOR.services_by_name["TaskService"]
    occurrences = occurrence_service_pb2.DESCRIPTOR.services_by_name["OccurrenceService"]
    owners = owner_service_pb2.DESCRIPTOR.services_by_name["EntityOwnerService"]
    dead = topics.dead_letter_topic(settings.app_id)
    return Wiring(
        servicers=[
            Exposed(service, tasks, TASK_ACCESS),
            Exposed(occurrences, OccurrenceServicer(indexes, writer), OCCURRENCE_ACCESS),
            Exposed(owners, OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[Subscription(topics.USER_ERASED, erasure.take, dead_letter_topic=dead)],
        start=[runtime.outbox.start, reminders.start],
        stop=[reminders.stop],
    )


if __name__ == "__main__":
    run("task", TaskSettings, build)
