"""Starts the reminder service."""

import socket

from gaggle.owner.v1 import owner_service_pb2
from gaggle.reminder.v1 import reminder_service_pb2
from gaggle.task.v1 import task_service_pb2_grpc
from services.reminder.arming import Arming
from services.reminder.firing import Firing
from services.reminder.following import Following
from services.reminder.index import UserIndex
from services.reminder.metrics import ReminderMetrics
from services.reminder.owning import Owner
from services.reminder.reading import Reader
from services.reminder.servicer import REMINDER_ACCESS, ReminderServicer
from services.reminder.settings import ReminderSettings
from services.reminder.store import ReminderStore
from services.reminder.sweeping import Sweep
from services.reminder.tasks import Tasks
from services.reminder.upcoming import Upcoming
from services.reminder.writing import Writer
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.erasure import Erasure
from services.runtime.invocation import Peer
from services.runtime.jobs import Jobs
from services.runtime.owning import OWNER_ACCESS, OwnerServicer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: ReminderSettings) -> Wiring:
    """Put the service together."""
    metrics = ReminderMetrics(runtime.metrics.registry)
    store = ReminderStore(runtime.state, runtime.outbox, UserIndex(runtime.state))
    arming = Arming(Jobs(runtime.sidecar), metrics)
    store.committed = arming.committed
    tasks = Tasks(Peer(runtime.sidecar, settings.sibling(settings.task_app), task_service_pb2_grpc.TaskServiceStub))

    def issue(user_id: str) -> str:
        return runtime.tokens.issue(user_id)

    firing = Firing(store, tasks, issue, settings, metrics)
    following = Following(store)
    sweep = Sweep(
        store,
        firing,
        following,
        arming,
        tasks,
        issue,
        settings,
        metrics,
        holder=f"{settings.app_id}@{socket.gethostname()}:{settings.port}",
    )
    owner = Owner(store)
    erasure = Erasure(runtime.state, runtime.outbox, runtime.name, owner.empty)
    servicer = ReminderServicer(Writer(store, tasks, check_tasks=settings.check_tasks), Reader(store), Upcoming(store))
    dead = topics.dead_letter_topic(settings.app_id)
    services = reminder_service_pb2.DESCRIPTOR.services_by_name
    owners = owner_service_pb2.DESCRIPTOR.services_by_name
    return Wiring(
        servicers=[
            Exposed(services["ReminderService"], servicer, REMINDER_ACCESS),
            Exposed(owners["EntityOwnerService"], OwnerServicer(owner), OWNER_ACCESS),
        ],
        subscriptions=[
            Subscription(topics.TASK_EVENTS, following.on_task_events, dead_letter_topic=dead),
            Subscription(topics.USER_ERASED, erasure.take, dead_letter_topic=dead),
        ],
        jobs=firing.on_job,
        bindings={settings.sweep_binding: sweep.on_tick},
        start=[runtime.outbox.start],
        background=[arming.run, sweep.run],
    )


if __name__ == "__main__":
    run("reminder", ReminderSettings, build)
