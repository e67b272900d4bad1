"""A turn on a model that answers at once: by the bare SDK, and by the agent service, straight and through two sidecars.

What the service adds is the difference.
"""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
from openai import AsyncOpenAI

from bench.clients.client import Spec
from bench.model_server import WORDS
from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import agent_service_pb2_grpc as api_grpc
from gaggle.agent.v1 import turn_pb2
from gaggle.conversation.v1 import conversation_pb2, message_pb2
from gaggle.conversation.v1 import conversation_service_pb2 as conversation_api
from gaggle.conversation.v1 import conversation_service_pb2_grpc as conversation_grpc

_QUESTION = "x" * 100
_ANSWER = "".join(WORDS)
_KEPT = 50
_CALLERS = 8
ENDPOINT = {"name": "bench", "secret": "", "models": {"instant": {"context_tokens": 8000}}}
"""Of GAGGLE_MODEL_ENDPOINTS, but for its base_url."""


class Turn:
    """One way to an answer. Each turn is taken to its end; with `first` the time until its first words counts."""

    def __init__(self, *, first: bool) -> None:
        """`first`: which time is told."""
        self._first = first
        self._began: dict[int, float] = {}
        self._words: dict[int, float] = {}

    def _begin(self, caller: int) -> None:
        self._began[caller] = time.perf_counter()
        self._words.pop(caller, None)

    def _heard(self, caller: int) -> None:
        self._words.setdefault(caller, time.perf_counter())

    def _milliseconds(self, caller: int) -> float | None:
        return (self._words[caller] - self._began[caller]) * 1000 if self._first else None

    async def prepare(self, history: int) -> None:
        """Take one turn for each caller, to see that it is answered."""
        for caller in range(_CALLERS):
            await self.read(history, caller)

    async def read(self, history: int, caller: int) -> float | None:
        """Take a turn; gives the milliseconds that count, None for all of it."""
        raise NotImplementedError

    async def append(self, history: int, caller: int) -> None:
        """Nothing is kept but the turns."""

    async def reset(self, history: int) -> None:
        """Conversations keep so few messages that nothing grows."""


class Bare(Turn):
    """The SDK's own client."""

    def __init__(self, client: AsyncOpenAI, *, first: bool) -> None:
        """`client` is connected to the model."""
        super().__init__(first=first)
        self._client = client

    async def read(self, history: int, caller: int) -> float | None:  # noqa: ARG002
        """See Turn."""
        self._begin(caller)
        text = ""
        stream: Any = await self._client.chat.completions.create(
            model="instant",
            messages=[{"role": "user", "content": _QUESTION}],
            stream=True,
            stream_options={"include_usage": True},
        )
        async with stream:
            async for chunk in stream:
                text += "".join(choice.delta.content or "" for choice in chunk.choices)
                if text:
                    self._heard(caller)
        assert text == _ANSWER
        return self._milliseconds(caller)


class Mesh(Turn):
    """The agent service, by its generated stub; a conversation for each caller."""

    def __init__(self, agent: Any, conversation: Any, metadata: tuple[tuple[str, str], ...], *, first: bool) -> None:
        """`metadata` goes with every turn; `conversation` is its service's stub, with metadata of its own."""
        super().__init__(first=first)
        self._agent = agent
        self._conversation = conversation
        self._metadata = metadata
        self._conversations: list[str] = []

    async def prepare(self, history: int) -> None:
        """Make the conversations, if that has not been done."""
        while len(self._conversations) < _CALLERS:
            request = conversation_api.CreateConversationRequest(
                retention=conversation_pb2.Retention(max_messages=_KEPT)
            )
            created = await self._conversation(request)
            self._conversations.append(created.conversation.id)
        await super().prepare(history)

    async def read(self, history: int, caller: int) -> float | None:  # noqa: ARG002
        """See Turn."""
        self._begin(caller)
        said = message_pb2.ContentPart(text=message_pb2.TextContent(text=_QUESTION))
        conversation_id = self._conversations[caller]
        request = api.ChatRequest(conversation_id=conversation_id, message=[said], model="bench:instant")
        ended = None
        async for response in self._agent.Chat(request, metadata=self._metadata):
            if response.event.HasField("text_delta"):
                self._heard(caller)
            if response.event.HasField("ended"):
                ended = response.event.ended
        assert ended is not None
        assert ended.status == turn_pb2.TURN_STATUS_COMPLETED, ended
        assert ended.message.content[0].text.text == _ANSWER
        return self._milliseconds(caller)


@contextlib.asynccontextmanager
async def _bare(spec: Spec, *, first: bool) -> AsyncIterator[Bare]:
    async with AsyncOpenAI(base_url=spec.model_url, api_key="none", max_retries=0) as client:
        yield Bare(client, first=first)


@contextlib.asynccontextmanager
async def _mesh(spec: Spec, *, first: bool, through: bool) -> AsyncIterator[Mesh]:
    token = (("authorization", f"Bearer {spec.token}"),)
    route = (("dapr-app-id", spec.agent_app_id), ("dapr-stream", "true")) if through else ()
    async with (
        grpc.aio.insecure_channel(spec.sidecar_grpc if through else spec.agent) as agent,
        grpc.aio.insecure_channel(spec.service) as conversation,
    ):
        stub: Any = conversation_grpc.ConversationServiceStub(conversation)
        create = partial(stub.CreateConversation, metadata=token)
        yield Mesh(api_grpc.AgentServiceStub(agent), create, (*token, *route), first=first)


Connect = Callable[[Spec], contextlib.AbstractAsyncContextManager[Turn]]
connect_bare: Connect = partial(_bare, first=False)
connect_bare_first: Connect = partial(_bare, first=True)
connect_straight: Connect = partial(_mesh, first=False, through=False)
connect_straight_first: Connect = partial(_mesh, first=True, through=False)
connect_sidecars: Connect = partial(_mesh, first=False, through=True)
connect_sidecars_first: Connect = partial(_mesh, first=True, through=True)
