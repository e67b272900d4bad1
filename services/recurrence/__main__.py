"""Starts the recurrence service."""

from gaggle.owner.v1 import owner_service_pb2_grpc
from gaggle.recurrence.v1 import recurrence_service_pb2
from gaggle.task.v1 import occurrence_service_pb2_grpc, task_service_pb2_grpc
from services.recurrence.handlers import Continuation
from services.recurrence.servicer import RECURRENCE_ACCESS, RecurrenceServicer
from services.recurrence.settings import RecurrenceSettings
from services.runtime import topics
from services.runtime.callbacks import Subscription
from services.runtime.invocation import Peer
from services.runtime.service import Exposed, Runtime, Wiring, run


def build(runtime: Runtime, settings: RecurrenceSettings) -> Wiring:
    """Put the service together."""
    app = settings.sibling(settings.task_app)
    continuation = Continuation(
        Peer(runtime.sidecar, app, task_service_pb2_grpc.TaskServiceStub),
        Peer(runtime.sidecar, app, occurrence_service_pb2_grpc.OccurrenceServiceStub),
        Peer(runtime.sidecar, app, owner_service_pb2_grpc.EntityOwnerServiceStub),
        # Not `runtime.tokens.issue`: the tokens are there once the service is ready.
        lambda user_id: runtime.tokens.issue(user_id),  # noqa: PLW0108
    )
    service = recurrence_service_pb2.DESCRIPTOR.services_by_name["RecurrenceService"]
    dead = topics.dead_letter_topic(settings.app_id)
    return Wiring(
        servicers=[Exposed(service, RecurrenceServicer(), RECURRENCE_ACCESS)],
        subscriptions=[Subscription(topics.TASK_EVENTS, continuation.take, dead_letter_topic=dead)],
        background=[lambda: continuation.sweep_forever(settings.sweep_seconds)],
        keeps_state=False,
    )


if __name__ == "__main__":
    run("recurrence", RecurrenceSettings, build)
