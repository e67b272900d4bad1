"""What a turn streams, event by event, with positions that survive any process.

A position counts an event as 1 and text by its characters, so that pieces of text can be put together for storage and
taken apart again for a caller who had half of one. Each attempt begins at a multiple of 2**40: whoever stood somewhere
in what an earlier process did not save goes on with the next attempt's first event, which takes it back.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from gaggle.agent.v1 import turn_pb2

_ATTEMPT = 1 << 40


def start_position(attempt: int) -> int:
    """Where the events of an attempt begin."""
    return (attempt - 1) * _ATTEMPT


def weight(event: turn_pb2.TurnEvent) -> int:
    """Positions that an event takes."""
    kind = event.WhichOneof("event")
    if kind == "text_delta":
        return len(event.text_delta.text)
    if kind == "thinking_delta":
        return len(event.thinking_delta.text)
    return 1


def after(events: Iterable[turn_pb2.TurnEvent], position: int) -> Iterator[turn_pb2.TurnEvent]:
    """Give what comes after a position, the rest of a piece of text included."""
    for event in events:
        if event.position <= position:
            continue
        begin = event.position - weight(event)
        if begin >= position:
            yield event
            continue
        rest = turn_pb2.TurnEvent(position=event.position)
        if event.HasField("text_delta"):
            rest.text_delta.text = event.text_delta.text[position - begin :]
        elif event.HasField("thinking_delta"):
            rest.thinking_delta.text = event.thinking_delta.text[position - begin :]
        else:
            rest.CopyFrom(event)
        yield rest


def joined(events: Iterable[turn_pb2.TurnEvent]) -> list[turn_pb2.TurnEvent]:
    """Put neighbouring pieces of text together; leave out progress, which nobody needs afterwards."""
    result: list[turn_pb2.TurnEvent] = []
    texts: list[str] = []
    kind = ""

    def close() -> None:
        if texts:
            getattr(result[-1], kind).text = "".join(texts)
            texts.clear()

    for event in events:
        what = event.WhichOneof("event") or ""
        if what == "tool_progress":
            continue
        if what in {"text_delta", "thinking_delta"}:
            follows = texts and what == kind and result[-1].position == event.position - weight(event)
            if not follows:
                close()
                result.append(turn_pb2.TurnEvent())
                kind = what
            result[-1].position = event.position
            texts.append(getattr(event, what).text)
            continue
        close()
        result.append(event)
    close()
    return result


class Journal:
    """The events of one attempt, as they happen."""

    def __init__(self, attempt: int) -> None:
        """Begin at the attempt's start."""
        self.base = start_position(attempt)
        self.position = self.base
        self.events: list[turn_pb2.TurnEvent] = []
        self._saved = 0

    def add(self, event: turn_pb2.TurnEvent) -> turn_pb2.TurnEvent:
        """Give an event its position."""
        self.position += weight(event)
        event.position = self.position
        self.events.append(event)
        return event

    def since(self, position: int) -> list[turn_pb2.TurnEvent]:
        """Give what comes after a position."""
        index = bisect_right(self.events, position, key=lambda event: event.position)
        return list(after(self.events[index:], position))

    def unsaved(self) -> list[turn_pb2.TurnEvent]:
        """Give what is in no row of the log yet."""
        return joined(self.events[self._saved :])

    def saved(self, through: int) -> None:
        """Note that all up to a position lies in the log."""
        while self._saved < len(self.events) and self.events[self._saved].position <= through:
            self._saved += 1

    def drop_unsaved_text(self) -> None:
        """Leave out of the log what a step said that begins again. Who streams has had it, and is told."""
        kept = [
            one for one in self.events[self._saved :] if one.WhichOneof("event") not in {"text_delta", "thinking_delta"}
        ]
        self.events = self.events[: self._saved] + kept


def text_of(events: Iterable[turn_pb2.TurnEvent]) -> str:
    """Give the text that these events say."""
    return "".join(event.text_delta.text for event in events if event.HasField("text_delta"))
