"""A user's calls of the task service."""

from datetime import UTC, datetime
from typing import Any

import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.common.v1 import event_pb2
from gaggle.task.v1 import task_service_pb2 as api
from gaggle.task.v1 import task_service_pb2_grpc
from tests.mesh_fixture import Mesh

TIMEOUT_SECONDS = 20.0
Metadata = tuple[tuple[str, str], ...]


class Tasker:
    """One user's way to the service: `await tasker("GetTask", task_id=...)`."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Metadata) -> None:
        """`metadata` goes with every call."""
        self.channel = channel
        self.metadata = metadata
        self._stub: Any = task_service_pb2_grpc.TaskServiceStub(channel)

    async def __call__(self, method: str, **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's."""
        request = getattr(api, f"{method}Request")(**fields)
        return await getattr(self._stub, method)(request, metadata=self.metadata, timeout=TIMEOUT_SECONDS)

    async def create(self, title: str = "a task", **fields: Any) -> Any:
        """Create a task and give it."""
        return (await self("CreateTask", title=title, **fields)).task

    async def get(self, task_id: str) -> Any:
        """Read a task."""
        return (await self("GetTask", task_id=task_id)).task

    async def list(self, **fields: Any) -> "list[Any]":
        """Read a list to its end."""
        found: list[Any] = []
        token = ""
        while True:
            page = await self("ListTasks", page_token=token, **fields)
            found += page.tasks
            token = page.next_page_token
            if not token:
                return found


def at(text: str) -> Timestamp:
    """A time from ISO 8601, in UTC if it says nothing else."""
    moment = datetime.fromisoformat(text)
    stamp = Timestamp()
    stamp.FromDatetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    return stamp


def seconds(*numbers: int) -> list[Duration]:
    """Durations."""
    return [Duration(seconds=number) for number in numbers]


async def told(mesh: Mesh, user: str, task_id: str) -> list[event_pb2.Event]:
    """What the log has of a task, in the order of its revisions."""
    async with mesh.channel("audit") as channel:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        request = audit_service_pb2.ListEventsRequest(
            filter=audit_service_pb2.EventFilter(entity_type="task", entity_id=task_id), page_size=100
        )
        answer = await stub.ListEvents(request, metadata=mesh.metadata(user), timeout=TIMEOUT_SECONDS)
    return sorted((one.event for one in answer.entries), key=lambda one: (one.incarnation, one.revision))
