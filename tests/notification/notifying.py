"""A user's calls of the notification service, and events as others publish them."""

import json
import time
import uuid
from datetime import UTC, datetime
from typing import Any

import grpc.aio
from google.protobuf.json_format import MessageToDict

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.notification.v1 import notification_service_pb2 as api
from gaggle.notification.v1 import notification_service_pb2_grpc
from services.runtime import topics
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from services.runtime.identity import TokenSigner
from tests.conditions import eventually
from tests.mesh_fixture import Mesh

TIMEOUT_SECONDS = 20.0


class Notified:
    """One user's way to the service: `await notified("MarkRead", ...)`."""

    def __init__(self, mesh: Mesh, channel: grpc.aio.Channel, user: str) -> None:
        self.mesh = mesh
        self.channel = channel
        self.user = user
        self.address = f"{user}@example.org"
        self._stub: Any = notification_service_pb2_grpc.NotificationServiceStub(channel)

    async def __call__(self, method: str, *, roles: tuple[str, ...] = (), service: str = "", **fields: Any) -> Any:
        """Make a unary call; `fields` are the request's. `service`: that service calls for the user."""
        request = getattr(api, f"{method}Request")(**fields)
        metadata: Any = self.mesh.metadata(self.user, roles=roles)
        if service:
            metadata = (("authorization", f"Bearer {self._service_token(service)}"),)
        return await getattr(self._stub, method)(request, metadata=metadata, timeout=TIMEOUT_SECONDS)

    def _service_token(self, service: str) -> str:
        key = (self.mesh.data.keys / f"{service}.jwk").read_text()
        signer = TokenSigner(key, issuer="gaggle", audience="gaggle")
        return signer.sign(self.user, ttl_seconds=60, service=service)

    async def tell(self, title: str = "hello", **fields: Any) -> Any:
        """Have a service tell the user something."""
        return await self("SendNotification", service="task", **{"kind": 6, "title": title, **fields})

    async def all(self, **fields: Any) -> list[Any]:
        """Read the inbox to its end, newest first."""
        found: list[Any] = []
        token = ""
        while True:
            page = await self("ListNotifications", page_token=token, **fields)
            found += page.notifications
            token = page.next_page_token
            if not token:
                return found

    async def until(self, count: int, *, within: float = 20.0) -> list[Any]:
        """Wait until so many are in the inbox; gives them."""

        async def there() -> list[Any]:
            found = await self.all()
            return found if len(found) >= count else []

        found = await eventually(there, within=within, what=f"{count} notifications of {self.user}")
        assert len(found) == count
        return found

    async def told(self, count: int, event_type: str, *, within: float = 30.0) -> list[dict[str, Any]]:
        """Wait until the log has so many events of a type of this user; gives them in order."""

        async def logged() -> list[dict[str, Any]]:
            async with self.mesh.channel("audit") as channel:
                stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
                request = audit_service_pb2.ListEventsRequest(
                    filter=audit_service_pb2.EventFilter(entity_type="notification"), page_size=500
                )
                answer = await stub.ListEvents(request, metadata=self.mesh.metadata(self.user), timeout=TIMEOUT_SECONDS)
            found = [
                {"trace": one.event.metadata.get("traceparent", "")[3:35], **MessageToDict(one.event.data)}
                for one in answer.entries
                if one.event.event_type == event_type
            ]
            return found if len(found) >= count else []

        found = await eventually(logged, within=within, what=f"{count} events {event_type}")
        assert len(found) == count, found
        return found

    async def publish(self, topic: str, body: dict[str, Any]) -> None:
        """Publish an event as who may: users are erased by the conversation service, the rest may come by audit's."""
        async with self.mesh.sidecar("conversation" if topic == topics.USER_ERASED else "audit") as channel:
            stub: Any = dapr_pb2_grpc.DaprStub(channel)  # type: ignore[no-untyped-call]
            await stub.PublishEvent(
                pubsub_pb2.PublishEventRequest(
                    pubsub_name="pubsub",
                    topic=topic,
                    data=json.dumps(body).encode(),
                    data_content_type="application/json",
                ),
                timeout=TIMEOUT_SECONDS,
            )

    def reminder(self, title: str, **fields: Any) -> dict[str, Any]:
        """What the reminder service publishes when a reminder is due."""
        task_id = str(uuid.uuid4())
        now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
        return {
            "event_id": f"reminder.x.{task_id}.1.1.1",
            "event_type": "reminder.due",
            "entity_type": "reminder",
            "entity_id": task_id,
            "user_id": self.user,
            "timestamp": now,
            "revision": "1",
            "part": 1,
            "parts": 1,
            "incarnation": 1,
            "data": {
                "task_id": task_id,
                "user_id": self.user,
                "title": title,
                "due_at": "2031-07-01T10:00:00Z",
                "remind_at": now,
                "occurrence": 1,
                "time_zone": "Europe/Berlin",
            },
            **fields,
        }


def clock(ahead_seconds: float) -> str:
    """The time of day in UTC, in so many seconds."""
    return datetime.fromtimestamp(time.time() + ahead_seconds, UTC).strftime("%H:%M:%S")
