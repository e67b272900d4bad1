"""Two replicas of the log."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.audit.v1 import audit_service_pb2_grpc
from services.runtime.dapr import dapr_pb2_grpc, pubsub_pb2
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("log-replicas")]

_WITHIN = 60.0
_TOPIC = "goose.agent.tool.executed"


@pytest.fixture(scope="module")
def pair(private_mesh: Callable[..., Mesh]) -> Mesh:
    """Two replicas of the audit service, which by themselves look for each other's events every ten minutes."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GAGGLE_WATCH_POLL_SECONDS", "600")
        return private_mesh(only=["audit", "agent"], replicas={"audit": 2})


async def test_whichever_replica_logs_an_event_all_watchers_hear_of_it(pair: Mesh, user: str) -> None:
    """Watchers at both replicas get every event soon, whichever of the two has logged it."""
    metadata = pair.metadata(user)
    async with pair.channel("audit", 0) as one, pair.channel("audit", 1) as other, pair.sidecar("agent") as sidecar:
        stubs: list[Any] = [audit_service_pb2_grpc.AuditServiceStub(channel) for channel in (one, other)]
        request = api.WatchEventsRequest()
        streams = [stub.WatchEvents(request, metadata=metadata, timeout=_WITHIN) for stub in stubs]
        for stream in streams:
            assert not (await stream.read()).entries
        publisher: Any = dapr_pb2_grpc.DaprStub(sidecar)  # type: ignore[no-untyped-call]
        # Replicas share the events of a topic: of twenty, one after the other, both log some.
        for number in range(20):
            body = {"eventId": f"{user}.{number}", "eventType": _TOPIC, "userId": user, "data": {"tool": "ls"}}
            event = pubsub_pb2.PublishEventRequest(
                pubsub_name="pubsub", topic=_TOPIC, data=json.dumps(body).encode(), data_content_type="application/json"
            )
            await publisher.PublishEvent(event)
            for stream in streams:
                assert await _next(stream) == [f"{user}.{number}"]


async def _next(stream: Any) -> list[str]:
    while True:
        response = await stream.read()
        if response.entries:
            return [one.event.event_id for one in response.entries]
