"""The task service's methods: read the request, call the domain, shape the answer."""

from typing import Any

from gaggle.task.v1 import occurrence_service_pb2 as occurrence_api
from gaggle.task.v1 import occurrence_service_pb2_grpc as occurrence_grpc
from gaggle.task.v1 import task_service_pb2 as api
from gaggle.task.v1 import task_service_pb2_grpc as api_grpc
from services.runtime.access import Access, only, user_or
from services.runtime.identity import current_caller
from services.runtime.times import sensible
from services.task import domain, validation
from services.task.index import Indexes
from services.task.reading import Reader
from services.task.store import TaskStore
from services.task.validation import named
from services.task.writing import Writer

TASK_ACCESS: dict[str, Access] = {
    "GetTask": user_or("agent", "extension", "notification", "recurrence", "reminder", "sync"),
    "ListTasks": user_or("agent", "extension", "reminder", "sync"),
    "UpdateTask": user_or("agent", "extension", "reminder"),
    "*": user_or("agent", "extension"),
}
OCCURRENCE_ACCESS: dict[str, Access] = {"*": only("recurrence")}
OWNER_ACCESS: dict[str, Access] = {"*": only("audit"), "ListUsers": only("audit", "recurrence", "reminder")}
MAX_WAITING = 100


class TaskServicer(api_grpc.TaskServiceServicer):
    """Serves gaggle.task.v1.TaskService."""

    def __init__(self, store: TaskStore, writer: Writer, reader: Reader) -> None:
        """All on the same state."""
        self._store = store
        self._writer = writer
        self._reader = reader

    async def CreateTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        await validation.create(request)
        return await self._writer.create(_user(), request)

    async def GetTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.task_id).raise_if_any()
        return api.GetTaskResponse(task=domain.describe(await self._store.get(_user(), request.task_id)))

    async def ListTasks(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.listing(request)
        return await self._reader.tasks(_user(), request)

    async def UpdateTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.update(request)
        return await self._writer.update(_user(), request)

    async def CompleteTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.task_id, request.request_id).raise_if_any()
        return await self._writer.complete(_user(), request)

    async def ReopenTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.task_id, request.request_id).raise_if_any()
        return await self._writer.reopen(_user(), request)

    async def DeleteTask(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        named(request.task_id, request.request_id).raise_if_any()
        return await self._writer.delete(_user(), request)


class OccurrenceServicer(occurrence_grpc.OccurrenceServiceServicer):
    """Serves gaggle.task.v1.OccurrenceService to the recurrence service."""

    def __init__(self, indexes: Indexes, writer: Writer) -> None:
        """Both on the same state."""
        self._indexes = indexes
        self._writer = writer

    async def ListWaiting(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        index = await self._indexes.read(_user())
        return occurrence_api.ListWaitingResponse(task_ids=index.waiting[:MAX_WAITING])

    async def ContinueSeries(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = named(request.task_id)
        if request.HasField("next"):
            violations.check(ok=bool(request.etag), field="etag", what="must be set")
            violations.check(ok=request.next.occurrence > 1, field="next.occurrence", what="must be 2 or more")
            ok = request.next.HasField("occurrence_time") and sensible(request.next.occurrence_time)
            violations.check(ok=ok, field="next.occurrence_time", what="must be a time from 1900 to 2400")
        violations.raise_if_any()
        return await self._writer.continue_series(_user(), request)


def _user() -> str:
    return current_caller().user_id
