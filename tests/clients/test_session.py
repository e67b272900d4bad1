"""GaggleSession on a real mesh, and openai-agents' own Runner on it."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc.aio
import openai
import pytest
from agents import Agent, OpenAIChatCompletionsModel, RunConfig, Runner, Session, function_tool
from agents.memory import SessionSettings

from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import conversation_service_pb2_grpc, message_pb2
from gaggle_client import Gaggle, GaggleSession, connect
from tests.agent.scripted import KEY, ScriptedModel, script
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

_CONFIG = RunConfig(tracing_disabled=True)


@pytest.fixture
async def gaggle(mesh: Mesh, user: str) -> AsyncIterator[Gaggle]:
    """The test's user, through a sidecar: as a program beside the mesh has it."""
    app_id = mesh.service("conversation").app_id
    address = mesh.service("audit").replicas[0].sidecar_grpc
    async with connect(address, token=lambda: mesh.token(user), app_id=app_id) as connected:
        yield connected


@pytest.fixture
def session(gaggle: Gaggle) -> GaggleSession:
    """A session that there is not yet."""
    return GaggleSession(f"session-{uuid.uuid4().hex}", gaggle)


@pytest.fixture
def model() -> Iterator[ScriptedModel]:
    """A server that speaks OpenAI's chat completions."""
    one = ScriptedModel()
    yield one
    one.stop()


def _texts(count: int, start: int = 0) -> list[Any]:
    return [{"role": "user", "content": f"number {number}"} for number in range(start, start + count)]


async def test_items_in_order(session: GaggleSession) -> None:
    """What is added is given in order, the newest so many or all; nothing at all is an empty history."""
    assert isinstance(session, Session)
    assert await session.get_items() == []
    assert await session.get_items(5) == []
    assert await session.pop_item() is None
    await session.clear_session()
    await session.add_items([])
    await session.add_items(_texts(3))
    await session.add_items(_texts(1200, start=3))
    assert await session.get_items() == _texts(1203)
    assert await session.get_items(1100) == _texts(1100, start=103)
    assert await session.get_items(2) == _texts(2, start=1201)
    assert await session.get_items(0) == []
    session.session_settings = SessionSettings(limit=3)
    assert await session.get_items() == _texts(3, start=1200)
    assert await session.get_items(1) == _texts(1, start=1202)


async def test_pop_and_clear(session: GaggleSession) -> None:
    """The newest item is taken away, once, whoever else takes; clearing leaves nothing, and more can follow."""
    await session.add_items(_texts(6))
    assert await session.pop_item() == _texts(1, start=5)[0]
    popped = await asyncio.gather(*(session.pop_item() for _ in range(3)))
    assert sorted(str(one) for one in popped) == sorted(str(one) for one in _texts(3, start=2))
    assert await session.get_items() == _texts(2)
    await session.clear_session()
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items(_texts(1))
    assert await session.get_items() == _texts(1)


async def test_it_is_a_conversation(mesh: Mesh, user: str, session: GaggleSession) -> None:
    """The agent service, the command line and every other reader see ordinary messages, of this user alone."""
    item: Any = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}
    await session.add_items([*_texts(1), item])
    request = api.ListMessagesRequest(conversation_id=session.session_id)
    async with mesh.channel("conversation") as channel:
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        messages = (await stub.ListMessages(request, metadata=mesh.metadata(user), timeout=20)).messages
        assert [one.content[0].text.text for one in messages] == ["number 0", "Hi"]
        said = message_pb2.ContentPart(text=message_pb2.TextContent(text="from elsewhere"))
        other = message_pb2.Message(role=message_pb2.ROLE_USER, content=[said])
        append = api.AppendMessagesRequest(conversation_id=session.session_id, messages=[other])
        await stub.AppendMessages(append, metadata=mesh.metadata(user), timeout=20)
    assert await session.get_items(1) == [{"role": "user", "content": "from elsewhere"}]
    async with connect(mesh.service("conversation").replicas[0].address, token=mesh.token(f"{user}-x")) as stranger:
        assert await GaggleSession(session.session_id, stranger).get_items() == []


async def test_what_is_refused(mesh: Mesh, session: GaggleSession) -> None:
    """An id that no conversation can have is refused at once; a bad token is the service's to refuse."""
    for name in ("", "a:b", "x" * 65):
        with pytest.raises(ValueError, match="session's id"):
            GaggleSession(name, session._gaggle)
    async with connect(mesh.service("conversation").replicas[0].address, token="no.good.token") as nobody:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await GaggleSession("one", nobody).get_items()
    assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    big: Any = {"role": "user", "content": "x" * (1024 * 1024)}
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await session.add_items([big])
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await session.get_items() == []


async def test_the_sdks_own_runner(gaggle: Gaggle, session: GaggleSession, model: ScriptedModel) -> None:
    """An agent of openai-agents, with a tool, remembers what was said, in this process and in the next."""
    client = openai.AsyncOpenAI(base_url=model.start(), api_key=KEY, max_retries=0)
    added: list[str] = []

    @function_tool
    def add(title: str) -> str:
        """Add a task."""
        added.append(title)
        return f"added {title}"

    agent = Agent("helper", model=OpenAIChatCompletionsModel("one", client), tools=[add])
    question = script({"calls": [["call-1", "add", json.dumps({"title": "milk"})]]}, {"text": "Done."})
    first = await Runner.run(agent, question, session=session, run_config=_CONFIG)
    assert (first.final_output, added) == ("Done.", ["milk"])
    items: list[Any] = await session.get_items()
    assert [one.get("type", one.get("role")) for one in items] == [
        *("user", "function_call", "function_call_output", "message"),
    ]
    assert items[2]["output"] == "added milk"

    # Another process of the same session: what it sends to the model begins with all that was said.
    again = GaggleSession(session.session_id, gaggle)
    second = await Runner.run(agent, script({"text": "Yes, milk."}, mark="second"), session=again, run_config=_CONFIG)
    assert second.final_output == "Yes, milk."
    (sent,) = model.asked("second")
    assert [one["role"] for one in sent["messages"]] == ["user", "assistant", "tool", "assistant", "user"]
    assert sent["messages"][2]["content"] == "added milk"

    streamed = Runner.run_streamed(agent, script({"text": "Bye."}, mark="third"), session=again, run_config=_CONFIG)
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == "Bye."
    assert len(await session.get_items()) == 8
    limited = RunConfig(tracing_disabled=True, session_settings=SessionSettings(limit=2))
    await Runner.run(agent, script({"text": "Short."}, mark="fourth"), session=again, run_config=limited)
    (sent,) = model.asked("fourth")
    assert len(sent["messages"]) == 3
    await client.close()
