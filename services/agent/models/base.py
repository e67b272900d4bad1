"""What a turn needs of a model, and what a model may answer."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from google.rpc import code_pb2

from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from services.runtime.errors import GaggleError

if TYPE_CHECKING:
    # protobuf's enums have this type in their stubs alone.
    Reason: TypeAlias = error_reason_pb2.ErrorReason.ValueType


@dataclass(frozen=True, slots=True)
class Image:
    """A picture of a message."""

    url: str
    """An address, or a `data:` URL."""

    detail: str = ""


@dataclass(frozen=True, slots=True)
class CalledTool:
    """A tool call that a model asked for."""

    id: str
    name: str
    arguments_json: str


@dataclass(frozen=True, slots=True)
class PromptMessage:
    """One message as models take it."""

    role: str
    """system, user, assistant or tool."""

    text: str = ""
    images: tuple[Image, ...] = ()
    tool_calls: tuple[CalledTool, ...] = ()
    """Of the assistant."""

    tool_call_id: str = ""
    """Of a tool's answer."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool that the model may call."""

    name: str
    description: str
    schema_json: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """All that a model is asked."""

    messages: Sequence[PromptMessage]
    tools: Sequence[OfferedTool] = ()
    temperature: float | None = None
    max_output_tokens: int = 0
    """0: the model's own limit."""

    response_schema_json: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ThinkingText:
    """A piece of what a model thinks aloud."""

    text: str


@dataclass(frozen=True, slots=True)
class Finished:
    """The last piece: the answer is whole."""

    calls: tuple[CalledTool, ...] = ()
    usage: message_pb2.TokenUsage = field(default_factory=message_pb2.TokenUsage)
    resolved_model: str = ""
    truncated: bool = False
    """It ended because it reached its limit of tokens."""


Piece: TypeAlias = Text | ThinkingText | Finished


class Model(Protocol):
    """Something that answers."""

    name: str
    """As callers name it."""

    provider: str
    requested: str
    """As the provider names it."""

    description: str
    context_tokens: int
    tools: bool
    offline: bool
    """It takes no time and costs nothing."""

    def answer(self, prompt: Prompt) -> AsyncIterator[Piece]:
        """Answer in pieces, the last one Finished. Raises ModelError; cancelling ends it."""
        ...

    def cost(self, usage: message_pb2.TokenUsage) -> float | None:
        """Give the price of a call in US dollars; None if it is not known."""
        ...


class ModelError(GaggleError):
    """A call of a model failed: reason MODEL_RATE_LIMITED, MODEL_REFUSED, MODEL_UNAVAILABLE, ..."""

    def __init__(self, reason: "Reason", message: str, *, retry_after_seconds: float | None = None) -> None:
        """`message` may hold the provider's words, never a key."""
        super().__init__(message[:1000], reason=reason, retry_after_seconds=retry_after_seconds)
        self.code = _CODES[reason]  # type: ignore[misc]

    @property
    def may_be_repeated(self) -> bool:
        """Another try may succeed."""
        return self.reason in {
            error_reason_pb2.ERROR_REASON_MODEL_RATE_LIMITED,
            error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE,
        }


_CODES = {
    error_reason_pb2.ERROR_REASON_MODEL_RATE_LIMITED: code_pb2.RESOURCE_EXHAUSTED,
    error_reason_pb2.ERROR_REASON_MODEL_REFUSED: code_pb2.FAILED_PRECONDITION,
    error_reason_pb2.ERROR_REASON_MODEL_UNAVAILABLE: code_pb2.UNAVAILABLE,
    error_reason_pb2.ERROR_REASON_MODEL_REQUEST_REJECTED: code_pb2.INVALID_ARGUMENT,
    error_reason_pb2.ERROR_REASON_MODEL_KEY_REJECTED: code_pb2.FAILED_PRECONDITION,
    error_reason_pb2.ERROR_REASON_MODEL_RESPONSE_INVALID: code_pb2.FAILED_PRECONDITION,
}


def price(prices: "PriceList | None", usage: message_pb2.TokenUsage) -> float | None:
    """Price a call: what was read from or written to a cache is part of the input tokens."""
    if prices is None or not usage.HasField("input_tokens"):
        return None
    read, written = usage.cache_read_input_tokens, usage.cache_write_input_tokens
    plain = max(usage.input_tokens - read - written, 0)
    cache_read = prices.input if prices.cache_read is None else prices.cache_read
    cache_write = prices.input if prices.cache_write is None else prices.cache_write
    total = plain * prices.input + read * cache_read + written * cache_write + usage.output_tokens * prices.output
    return total / 1_000_000


class PriceList(Protocol):
    """US dollars for a million tokens: `services.agent.settings.Prices`."""

    @property
    def input(self) -> float:
        """Of the question."""

    @property
    def output(self) -> float:
        """Of the answer."""

    @property
    def cache_read(self) -> float | None:
        """Of what the provider had cached; None: as input."""

    @property
    def cache_write(self) -> float | None:
        """Of what the provider caches; None: as input."""
