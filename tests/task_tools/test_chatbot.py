"""The chatbot: ChatService with the tools for tasks, driven by plain words."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import grpc.aio
import pytest

from gaggle.agent.v1 import chat_service_pb2 as chat_api
from gaggle.agent.v1 import chat_service_pb2_grpc, turn_pb2
from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.notification.v1 import notification_service_pb2, notification_service_pb2_grpc
from gaggle.task.v1 import task_pb2
from tests.conversation.talking import refused
from tests.extension.asking import Asker, odd, stdio
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh
from tests.task.tasking import Tasker

pytestmark = pytest.mark.mesh

_TIMEOUT_SECONDS = 90.0


class Person:
    """Somebody who talks to the chatbot."""

    def __init__(self, mesh: Mesh, user: str, channels: dict[str, grpc.aio.Channel]) -> None:
        """`channels` by service."""
        self.metadata = mesh.metadata(user)
        self.extensions = Asker(channels["extension"], self.metadata)
        self.tasks = Tasker(channels["task"], self.metadata)
        self._chat: Any = chat_service_pb2_grpc.ChatServiceStub(channels["agent"])
        self._conversations: Any = conversation_service_pb2_grpc.ConversationServiceStub(channels["conversation"])
        self._notifications: Any = notification_service_pb2_grpc.NotificationServiceStub(channels["notification"])

    async def says(self, message: str, **fields: Any) -> Any:
        """Say something, and give what came of it."""
        request = chat_api.ChatServiceChatRequest(message=message, **fields)
        return await self._chat.Chat(request, metadata=self.metadata, timeout=_TIMEOUT_SECONDS)

    async def lives_in(self, zone: str) -> None:
        """Set the zone of the user's preferences."""
        request = notification_service_pb2.SetPreferencesRequest(time_zone=zone)
        await self._notifications.SetPreferences(request, metadata=self.metadata, timeout=_TIMEOUT_SECONDS)

    async def conversation(self, conversation_id: str) -> Any:
        """Read a conversation."""
        request = conversation_service_pb2.GetConversationRequest(conversation_id=conversation_id)
        return (await self._conversations.GetConversation(request, metadata=self.metadata, timeout=20)).conversation


@pytest.fixture
async def channels(mesh: Mesh) -> AsyncIterator[dict[str, grpc.aio.Channel]]:
    """The services' own ports."""
    async with AsyncExitStack() as stack:
        names = ("agent", "conversation", "extension", "notification", "task")
        yield {name: await stack.enter_async_context(mesh.channel(name)) for name in names}


@pytest.fixture
def ann(mesh: Mesh, user: str, channels: dict[str, grpc.aio.Channel]) -> Person:
    """The test's user."""
    return Person(mesh, user, channels)


@pytest.fixture
def bob(mesh: Mesh, user: str, channels: dict[str, grpc.aio.Channel]) -> Person:
    """Another user."""
    return Person(mesh, f"{user}-bob", channels)


async def test_tasks_by_talking(ann: Person, bob: Person) -> None:
    """Plain words add, list, move, complete and delete the caller's tasks, on the caller's own wall clock."""
    for person in (ann, bob):
        await person.extensions.register(stdio("tasks", *servers.TASKS))
    await ann.lives_in("Asia/Tokyo")
    added = await ann.says("Add task water the plants tomorrow 9am #home")
    assert added.history_state == turn_pb2.HISTORY_AVAILABLE
    (call,) = added.tool_calls
    assert (call.name, call.is_error) == ("tasks__add_task", False), call
    assert added.response == call.response
    (task,) = await ann.tasks.list()
    tokyo = ZoneInfo("Asia/Tokyo")
    tomorrow = datetime.now(tokyo).date() + timedelta(days=1)
    assert (task.title, task.time_zone, list(task.tags)) == ("water the plants", "Asia/Tokyo", ["home"])
    assert task.due_time.ToDatetime(UTC) == datetime(tomorrow.year, tomorrow.month, tomorrow.day, 9, tzinfo=tokyo)

    talk = {"conversation_id": added.conversation_id}
    listed = await ann.says("list tasks", **talk)
    assert "water the plants" in listed.response
    assert [one.content[0].WhichOneof("kind") for one in listed.history] == [
        *("text", "tool_request", "tool_response", "text"),
        *("text", "tool_request", "tool_response", "text"),
    ]
    reminded = await ann.says("Remind me of water the plants 10 minutes before.", **talk)
    assert "08:50" in reminded.response
    await ann.says("update task water the plants: due tomorrow 18:00 priority high", **talk)
    changed = await ann.tasks.get(task.id)
    assert changed.due_time.ToDatetime(UTC).astimezone(tokyo).hour == 18
    assert changed.priority == task_pb2.TASK_PRIORITY_HIGH
    several = await ann.says("complete task water the plants\nlist tasks", **talk)
    assert [one.name for one in several.tool_calls] == ["tasks__complete_task", "tasks__list_tasks"]
    assert several.response.endswith("There are no tasks.")
    assert (await ann.says("delete task water the plants", **talk)).response.startswith("Deleted")
    assert await ann.tasks.list() == []

    doubtful = await ann.says("complete task of another world", **talk)
    assert (doubtful.tool_calls[0].is_error, doubtful.response) == (
        True,
        'Error: There is no task "of another world".',
    )
    assert "There are no tasks." in (await bob.says("list tasks")).response
    kept = await ann.conversation(added.conversation_id)
    assert kept.retention.max_messages == 200


async def test_whose_conversation_it_is(ann: Person, bob: Person) -> None:
    """Another user's conversation answers as one that there is not, and nothing is added to it."""
    for person in (ann, bob):
        await person.extensions.register(stdio("tasks", *servers.TASKS))
    began = await ann.says("say hello")
    foreign = await refused(bob.says("say hello", conversation_id=began.conversation_id))
    missing = await refused(bob.says("say hello", conversation_id="there-is-none"))
    assert (foreign.code, foreign.reason) == (missing.code, missing.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert (await ann.conversation(began.conversation_id)).last_sequence == 2


async def test_one_registration_for_all(ann: Person, bob: Person, mesh: Mesh, user: str, channels: Any) -> None:
    """An admin registers the tools once; each user who loads them has their own tasks, and nobody else's."""
    admin = Asker(channels["extension"], mesh.metadata(f"{user}-admin", roles=["admin"]))
    name = f"shared-{user}"
    extension_id = await admin.register(stdio(name, *servers.TASKS), shared=True)
    try:
        for person, title in ((ann, "Ann's"), (bob, "Bob's")):
            await person.extensions("LoadExtension", extension_id=extension_id)
            await person.says(f"add task {title}", extensions=[name])
        assert [one.title for one in await ann.tasks.list()] == ["Ann's"]
        assert [one.title for one in await bob.tasks.list()] == ["Bob's"]
    finally:
        await admin("DeleteExtension", extension_id=extension_id)


async def test_a_token_goes_to_acting_commands_alone(ann: Person) -> None:
    """What acts for users is run as the deployment has it and no otherwise; nothing else gets a token."""
    await ann.extensions.loaded(odd())
    assert "gaggle/token" not in await ann.extensions.text("call_id", {}, name="odd", call_id="c1")
    more = await ann.extensions.register(stdio("more", *servers.TASKS, "--zone", "UTC"))
    answer = await refused(ann.extensions("LoadExtension", extension_id=more))
    assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "MCP_TARGET_BLOCKED")
    led = await ann.extensions.register(stdio("led", *servers.TASKS, envs={"GAGGLE_SIDECAR_ADDRESS": "evil:1"}))
    answer = await refused(ann.extensions("LoadExtension", extension_id=led))
    assert (answer.code, answer.reason) == ("PERMISSION_DENIED", "MCP_TARGET_BLOCKED")
