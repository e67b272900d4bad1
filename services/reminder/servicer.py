"""The reminder service's methods: read the request, call the domain, shape the answer."""

from typing import Any

from gaggle.reminder.v1 import reminder_service_pb2 as api
from gaggle.reminder.v1 import reminder_service_pb2_grpc as api_grpc
from services.reminder import validation
from services.reminder.reading import Reader
from services.reminder.tasks import SERVICE
from services.reminder.upcoming import Upcoming
from services.reminder.writing import Writer
from services.runtime.access import ADMIN, Access, user_or
from services.runtime.identity import current_caller

REMINDER_ACCESS: dict[str, Access] = {
    "ScheduleReminders": user_or("agent", "extension", SERVICE),
    "RescheduleReminders": user_or("agent", SERVICE),
    "CancelReminders": user_or("agent", SERVICE),
    "GetReminder": user_or("agent", "notification", "sync"),
    "ListReminders": user_or("agent", "extension", "notification", "sync"),
    "ListDueReminders": ADMIN,
    "*": user_or("agent"),
}


class ReminderServicer(api_grpc.ReminderServiceServicer):
    """Serves gaggle.reminder.v1.ReminderService."""

    def __init__(self, writer: Writer, reader: Reader, upcoming: Upcoming) -> None:
        """All on the same state."""
        self._upcoming = upcoming
        self._writer = writer
        self._reader = reader

    async def ScheduleReminders(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.schedule(request)
        return await self._writer.schedule(current_caller(), request)

    async def RescheduleReminders(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.reschedule(request)
        return await self._writer.reschedule(current_caller(), request)

    async def CancelReminders(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.cancel(request)
        return await self._writer.cancel(current_caller(), request)

    async def SnoozeReminder(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.snooze(request)
        return await self._writer.snooze(current_caller(), request)

    async def GetReminder(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = validation.named(request.task_id)
        violations.id("reminder_id", request.reminder_id, required=True)
        violations.raise_if_any()
        reminder = await self._reader.get(current_caller().user_id, request.task_id, request.reminder_id)
        return api.GetReminderResponse(reminder=reminder)

    async def ListReminders(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.listing(request)
        return await self._reader.page(current_caller().user_id, request)

    async def ListDueReminders(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.due(request)
        return await self._upcoming.page(request)
