"""The notification service's methods: read the request, call the domain, shape the answer."""

from typing import Any

from gaggle.notification.v1 import notification_service_pb2 as api
from gaggle.notification.v1 import notification_service_pb2_grpc as api_grpc
from services.notification import validation
from services.notification.reading import Reader
from services.notification.validation import Networks
from services.notification.writing import Writer
from services.runtime.access import ADMIN, PUBLIC, Access, only, user_or
from services.runtime.identity import current_caller

NOTIFICATION_ACCESS: dict[str, Access] = {
    "ListNotifications": user_or("agent", "sync"),
    "GetUnreadCount": user_or("agent", "sync"),
    # Whose task tools read times on the user's own wall clock.
    "GetPreferences": user_or("extension"),
    "SendNotification": only("agent", "extension", "recipe", "recurrence", "reminder", "task"),
    # Whoever has the e-mail: its token is the proof.
    "Unsubscribe": PUBLIC,
    "ListParked": ADMIN,
    "RedriveParked": ADMIN,
    "*": user_or(),
}


class NotificationServicer(api_grpc.NotificationServiceServicer):
    """Serves gaggle.notification.v1.NotificationService."""

    def __init__(self, writer: Writer, reader: Reader, networks: Networks) -> None:
        """`networks`: where webhooks may be though they are not public."""
        self._writer = writer
        self._reader = reader
        self._networks = networks

    async def ListNotifications(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return await self._reader.page(current_caller().user_id, request)

    async def GetUnreadCount(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return api.GetUnreadCountResponse(unread_count=await self._reader.unread(current_caller().user_id))

    async def MarkRead(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.mark_read(request)
        return await self._writer.mark(current_caller(), request)

    async def GetPreferences(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return api.GetPreferencesResponse(preferences=await self._reader.preferences(current_caller().user_id))

    async def SetPreferences(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.preferences(request, self._networks)
        return await self._writer.prefer(current_caller(), request)

    async def Unsubscribe(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        await self._writer.unsubscribe(request)
        return api.UnsubscribeResponse()

    async def SendNotification(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.send(request)
        return await self._writer.send(current_caller(), request)

    async def ListParked(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return await self._reader.parked(request)

    async def RedriveParked(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.redrive(request)
        return await self._writer.redrive(request)
