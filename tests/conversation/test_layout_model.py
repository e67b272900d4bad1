"""The layout of conversations against a model that is a list."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest.mock import patch

from hypothesis import Phase, settings, strategies
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from gaggle.conversation.v1 import conversation_service_pb2 as api
from gaggle.conversation.v1 import message_pb2
from services.conversation.index import UserIndexes
from services.conversation.reading import Reader
from services.conversation.settings import ConversationSettings
from services.conversation.store import PAGE_CLEAN_UP, ConversationStore, WindowCache
from services.conversation.writing import Writer
from tests.runtime.memory import MemoryBroker, MemoryState, make_outbox, settled

USER = "an:ev|il us%er"
T = TypeVar("T")
SETTINGS = ConversationSettings.model_validate(
    {"app_id": "conversation", "port": 0, "sidecar_port": 1, "app_api_token": "x"}
)
# Small numbers, so that a few messages cross every border.
SMALL: dict[str, Any] = {
    "STRIDE": 4,
    "WINDOW": 5,
    "MAX_WINDOW_BYTES": 1200,
    "MAX_WINDOW_SLOTS": 24,
    "MAX_INLINE_BYTES": 300,
}


class Model:
    """What a conversation should be: sequence to text, and the counters."""

    def __init__(self, messages: dict[int, str], last: int, most: int = 0) -> None:
        self.messages = messages
        self.last = last
        self.most = most

    def cut(self) -> None:
        """Apply retention."""
        if self.most:
            for sequence in sorted(self.messages)[: -self.most]:
                del self.messages[sequence]


class Layout(RuleBasedStateMachine):
    """Appends, truncations, forks, retention, summaries and deletes in any order."""

    conversations: Bundle[str] = Bundle("conversations")

    @initialize()
    def begin(self) -> None:
        # A replica that lost a race follows on what it saw again at once: the more races the better.
        self.patches = [
            patch.multiple("services.conversation.domain", **SMALL),
            patch("services.conversation.store._RIVALS_SECONDS", 0.0),
        ]
        for one in self.patches:
            one.start()
        self.loop = asyncio.new_event_loop()
        self.state = MemoryState()
        self.broker = MemoryBroker()
        clean_ups: dict[str, Any] = {}
        self.outbox = make_outbox(self.state, self.broker, clean_ups=clean_ups)
        self.run(self.outbox.start())
        self.indexes = UserIndexes(self.state)  # type: ignore[arg-type]
        self.replicas = [self.replica(), self.replica()]
        self.turn()
        clean_ups[PAGE_CLEAN_UP] = self.store.clean_up
        self.model: dict[str, Model] = {}
        self.count = 0

    def replica(self) -> tuple[ConversationStore, Writer, Reader]:
        """What a process has beside the store: each remembers other heads."""
        store = ConversationStore(self.state, self.outbox, WindowCache(100_000, 5))  # type: ignore[arg-type]
        return store, Writer(store, self.indexes, SETTINGS), Reader(store, self.indexes, SETTINGS)

    @rule()
    def turn(self) -> None:
        """The other replica goes on."""
        self.replicas.reverse()
        self.store, self.writer, self.reader = self.replicas[0]

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        try:
            for name in list(self.model):
                self.run(self.writer.delete(USER, api.DeleteConversationRequest(conversation_id=name)))
            self.run(settled(lambda: self.outbox._queued == 0))
            left = [key for key in self.state.items if ":p" in key or ":m" in key]
            assert left == [], "pages or rows outlive the last conversation that showed them"
        finally:
            self.run(self.outbox.stop())
            self.loop.close()
            for one in self.patches:
                one.stop()

    @rule(target=conversations)
    def create(self) -> str:
        self.count += 1
        name = f"c{self.count}"
        self.run(self.writer.create(USER, api.CreateConversationRequest(conversation_id=name)))
        self.model[name] = Model({}, 0)
        return name

    @rule(
        name=conversations, sizes=strategies.lists(strategies.sampled_from([1, 40, 120, 400]), min_size=1, max_size=9)
    )
    def append(self, name: str, sizes: list[int]) -> None:
        texts = [f"{self.count}-{index}-".ljust(size, "x") for index, size in enumerate(sizes)]
        self.count += 1
        messages = [
            message_pb2.Message(
                role=message_pb2.ROLE_USER, content=[message_pb2.ContentPart(text=message_pb2.TextContent(text=text))]
            )
            for text in texts
        ]
        model = self.model[name]
        request = api.AppendMessagesRequest(conversation_id=name, messages=messages, expected_sequence=model.last)
        answer = api.AppendMessagesResponse.FromString(self.run(self.writer.append(USER, request)))
        assert answer.first_sequence == model.last + 1
        for text in texts:
            model.last += 1
            model.messages[model.last] = text
        model.cut()

    @rule(name=conversations, drop=strategies.integers(0, 30))
    def truncate(self, name: str, drop: int) -> None:
        model = self.model[name]
        request = api.TruncateConversationRequest(conversation_id=name, drop_last=drop)
        if drop == 30:
            request = api.TruncateConversationRequest(conversation_id=name, all=True)
            drop = len(model.messages)
        self.run(self.writer.truncate(USER, request))
        for sequence in sorted(model.messages, reverse=True)[:drop]:
            del model.messages[sequence]

    @rule(name=conversations, back=strategies.integers(0, 40), target=conversations)
    def fork(self, name: str, back: int) -> str:
        self.count += 1
        child = f"c{self.count}"
        model = self.model[name]
        sequence = max(model.last - back, 0)
        request = api.ForkConversationRequest(conversation_id=name, new_conversation_id=child, sequence=sequence)
        self.run(self.writer.fork(USER, request))
        shared = {number: text for number, text in model.messages.items() if number <= sequence}
        self.model[child] = Model(shared, sequence, model.most)
        return child

    @rule(name=conversations, most=strategies.sampled_from([0, 3, 7, 20]))
    def retain(self, name: str, most: int) -> None:
        request = api.UpdateConversationRequest(conversation_id=name)
        request.retention.max_messages = most
        self.run(self.writer.update(USER, request))
        self.model[name].most = most
        self.model[name].cut()

    @rule(name=conversations)
    def compact(self, name: str) -> None:
        model = self.model[name]
        if not model.messages:
            return
        request = api.CompactConversationRequest(conversation_id=name, summary="so far")
        self.run(self.writer.compact(USER, request))
        model.last += 1
        model.messages[model.last] = "so far"
        model.cut()

    @rule(target=conversations, name=consumes(conversations))
    def delete(self, name: str) -> Any:
        self.run(self.writer.delete(USER, api.DeleteConversationRequest(conversation_id=name)))
        del self.model[name]
        return multiple()

    @invariant()
    def same_as_the_model(self) -> None:
        for name, model in getattr(self, "model", {}).items():
            expected = sorted(model.messages.items())
            head = self.run(self.store.head(USER, name))
            assert head.message_count == len(expected)
            assert head.next_sequence == model.last + 1
            assert self.read(name, page_size=7, after_sequence=0) == expected
            assert self.read(name, page_size=6, before_sequence=model.last + 1) == expected
            for size in (1, 5, 50):
                request = api.ListMessagesRequest(conversation_id=name, page_size=size)
                response = self.page(request)
                assert pairs(response) == expected[-size:]
                assert bool(response.next_page_token) >= (len(expected) > size)

    def page(self, request: api.ListMessagesRequest) -> api.ListMessagesResponse:
        return api.ListMessagesResponse.FromString(self.run(self.reader.messages(USER, request)))

    def read(self, name: str, **how: int) -> list[tuple[int, str]]:
        """Read everything, page by page, and put it in ascending order."""
        found: list[tuple[int, str]] = []
        token = ""
        while True:
            request = api.ListMessagesRequest(conversation_id=name, page_token=token, **how)
            response = self.page(request)
            found_here = pairs(response)
            assert found_here == sorted(found_here)
            found = found + found_here if "after_sequence" in how else found_here + found
            token = response.next_page_token
            if not token:
                return found


def pairs(response: api.ListMessagesResponse) -> list[tuple[int, str]]:
    """Sequence and text of each message."""
    return [(one.sequence, one.content[0].text.text or one.content[0].summary.text) for one in response.messages]


class TestLayout(Layout.TestCase):  # type: ignore[misc, valid-type]
    """Whatever is done in whatever order, every read gives what a plain list would hold, and nothing is left over."""

    # No shrinking: it takes minutes here, and the steps of a failure can be read as they are.
    settings = settings(max_examples=150, stateful_step_count=30, deadline=None, phases=[Phase.reuse, Phase.generate])


def test_nothing_is_left_of_what_a_lifted_retention_had_cut() -> None:
    """A large message that retention cut, and that the window lets go of once there is none any more, goes, too."""
    layout = Layout()
    layout.begin()
    name = layout.create()
    layout.append(name, [120, 400, 1, 120, 40, 120, 400, 400])
    layout.append(name, [400, 1, 40])
    layout.retain(name, 3)
    layout.retain(name, 0)
    layout.append(name, [120, 120, 400, 1])
    layout.same_as_the_model()
    layout.teardown()
