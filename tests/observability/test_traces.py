"""One trace from a client's word to what a person is told, through every service and sidecar on the way."""

from typing import Any

import pytest

from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.notification.v1 import notification_pb2
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified
from tests.observability.chatting import chat
from tests.observability.collector import Collector
from tests.observability.tracing import Trace, Zipkin, metadata, names, orphans, services
from tests.recipe.running import Cook

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("observed")]

_SECONDS = 60.0
_RECIPE = """
version: 1.0.0
title: Traced
description: Asks once
prompt: say Done and traced
"""


async def test_one_trace_from_chat_to_notification(observed: Mesh, traces: str, user: str) -> None:
    """A chat whose tool sets a reminder is one trace: agent, conversation, extension, task, reminder, notification.

    The turn, its state, its tool, the events it tells, the job that fires and the inbox are spans of it.
    """
    trace = Trace.begin()
    await chat(observed, user, trace, 'tool remind {"title": "Take the cake out"}')
    async with observed.channel("notification") as channel:
        (told,) = await Notified(observed, channel, user).until(1, within=60.0)
    assert told.title == "Take the cake out"

    own = {"agent", "conversation", "extension", "task", "reminder", "notification"}
    spans = await Zipkin(traces).until(
        trace,
        lambda found: (
            own | {"audit"} | {f"{one}.daprd" for one in own} <= services(found)
            and "reminder due, by job" in names(found, "reminder")
            and "pubsub/reminders" in names(found, "notification.daprd")
            and any("ontopicevent" in name for name in names(found, "notification"))
            # It hangs together: whatever was done, what it was done for is in the trace too.
            and not orphans(found, trace)
        ),
        what="spans of all services and their sidecars, each with its parent",
    )

    assert {one["traceId"] for one in spans} == {trace.trace_id}
    # Client to service, service to sidecar to service, state, topics, the tool, the job.
    assert "/gaggle.agent.v1.agentservice/chat" in names(spans, "agent")
    assert "model offline" in names(spans, "agent")
    assert "tools/call" in names(spans, "extension")
    assert "/gaggle.task.v1.taskservice/createtask" in names(spans, "task")
    daprd = {name for one in own for name in names(spans, f"{one}.daprd")}
    assert any("executestatetransaction" in name for name in daprd)
    assert any("publishevent" in name for name in daprd)
    assert any(name.startswith("pubsub/") for name in daprd)
    assert any("/gaggle.conversation.v1.conversationservice/appendmessages" in name for name in daprd)


async def test_a_workflow_is_in_the_trace_that_started_it(observed: Mesh, traces: str, user: str) -> None:
    """A recipe's run, its workflow, the chat in it and the notification of its end are one trace."""
    trace = Trace.begin()
    async with observed.channel("recipe") as channel, observed.channel("notification") as inbox:
        notified = Notified(observed, inbox, user)
        # Muted, unless one asks for it.
        kind = notification_pb2.NOTIFICATION_KIND_RECIPE_COMPLETED
        await notified("SetPreferences", kinds=[notification_pb2.KindPreferences(kind=kind)])
        cook = Cook(channel, metadata(observed, user, trace))
        execution_id = await cook.start(_RECIPE)
        await cook.ended(execution_id)
        (told,) = await notified.until(1, within=60.0)
    assert told.subject_id == execution_id

    own = {"recipe", "agent", "conversation", "notification"}
    spans = await Zipkin(traces).until(
        trace,
        lambda found: (
            own | {"recipe.daprd", "notification.daprd"} <= services(found)
            and {"recipe begin", "recipe step", "recipe finish"} <= names(found, "recipe")
        ),
        what="spans of the workflow and of what it did",
    )

    assert any("workflow" in name or "orchestration" in name for name in names(spans, "recipe.daprd"))
    assert "/gaggle.agent.v1.agentservice/chat" in names(spans, "agent")


async def test_traces_go_to_any_collector_by_otlp(
    observed: Mesh, traces: str, collected: tuple[Collector, str], user: str
) -> None:
    """Services and sidecars send the same trace by OTLP as to Zipkin, each under its own name."""
    trace = Trace.begin()
    async with observed.channel("conversation") as channel:
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        request = conversation_service_pb2.CreateConversationRequest()
        await stub.CreateConversation(request, metadata=metadata(observed, user, trace), timeout=_SECONDS)

    wanted = {"conversation", "conversation.daprd", "audit", "audit.daprd"}

    async def all_there() -> bool:
        return wanted <= collected[0].services(trace.trace_id)

    await eventually(all_there, within=60.0, what="spans of services and sidecars at the collector")
    await Zipkin(traces).until(trace, lambda found: wanted <= services(found), what="the same in Zipkin")


async def test_what_nobody_samples_is_not_exported(observed: Mesh, traces: str, user: str) -> None:
    """Sampling is configuration: a call whose caller decided against a trace leaves no span, in no process."""
    marker = Trace.begin()
    async with observed.channel("conversation") as channel:
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        request = conversation_service_pb2.CreateConversationRequest()
        unsampled = Trace.begin()
        name, value = unsampled.header
        chosen = (*observed.metadata(user), (name, value.removesuffix("01") + "00"))
        await stub.CreateConversation(request, metadata=chosen, timeout=_SECONDS)
        await stub.CreateConversation(request, metadata=metadata(observed, user, marker), timeout=_SECONDS)

    zipkin = Zipkin(traces)
    # What was sent later is there.
    await zipkin.until(marker, lambda found: "conversation.daprd" in services(found), what="the sampled call")
    assert await zipkin.spans(unsampled.trace_id) == []
