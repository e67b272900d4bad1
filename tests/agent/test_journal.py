"""Positions in a turn's stream."""

from hypothesis import given
from hypothesis import strategies as st

from gaggle.agent.v1 import turn_pb2
from services.agent import journal


def _events(pieces: list[tuple[str, str]]) -> journal.Journal:
    made = journal.Journal(1)
    for kind, text in pieces:
        if kind == "text":
            made.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text=text)))
        elif kind == "thinking":
            made.add(turn_pb2.TurnEvent(thinking_delta=turn_pb2.ThinkingDelta(text=text)))
        else:
            made.add(turn_pb2.TurnEvent(waiting=turn_pb2.TurnWaiting(turn_id=text)))
    return made


def _told(events: list[turn_pb2.TurnEvent]) -> list[tuple[str, str]]:
    """What was told, letter by letter."""
    found: list[tuple[str, str]] = []
    for event in events:
        kind = str(event.WhichOneof("event"))
        if kind == "waiting":
            found.append((kind, event.waiting.turn_id))
        else:
            found += [(kind, letter) for letter in getattr(event, kind).text]
    return found


_PIECES = st.lists(
    st.tuples(st.sampled_from(["text", "thinking", "other"]), st.text(min_size=1, max_size=6)), max_size=12
)


@given(_PIECES, st.data())
def test_any_place_can_be_gone_on_from(pieces: list[tuple[str, str]], data: st.DataObject) -> None:
    """Whoever stands at any position gets exactly what is missing, from memory or from what was stored."""
    made = _events(pieces)
    position = data.draw(st.integers(0, made.position))
    whole = _told(made.events)
    live = [event for event in made.events if event.position <= position]
    seen = live[-1].position if live else 0
    stored = journal.joined(made.events)
    assert _told(stored) == whole
    assert _told(list(journal.after(stored, seen))) == _told(made.since(seen))
    assert _told(live) + _told(made.since(seen)) == whole
    # A caller may stand within what was stored as one piece.
    assert len(_told(list(journal.after(stored, position)))) == made.position - position


@given(_PIECES, st.data())
def test_what_is_saved_is_saved_once(pieces: list[tuple[str, str]], data: st.DataObject) -> None:
    """Rows of the log, put one after the other, hold every event once."""
    made = journal.Journal(1)
    rows: list[turn_pb2.TurnEvent] = []
    for event in _events(pieces).events:
        made.add(turn_pb2.TurnEvent.FromString(event.SerializeToString()))
        if data.draw(st.booleans()):
            rows += made.unsaved()
            made.saved(made.position)
    rows += made.unsaved()
    assert _told(rows) == _told(made.events)
    positions = [event.position for event in rows]
    assert positions == sorted(set(positions))


def test_attempts_do_not_meet() -> None:
    """A position within an earlier attempt lies before everything of the next one."""
    first, second = journal.Journal(1), journal.Journal(2)
    for _ in range(3):
        first.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text="never saved")))
    second.add(turn_pb2.TurnEvent(restarted=turn_pb2.StepRestarted(reason="x")))
    assert [event.WhichOneof("event") for event in second.since(first.position)] == ["restarted"]


def test_a_step_that_begins_again_leaves_no_text() -> None:
    """What a step said before it was asked again is not in the log."""
    made = journal.Journal(1)
    made.add(turn_pb2.TurnEvent(started=turn_pb2.TurnStarted(turn_id="t")))
    made.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text="half")))
    made.drop_unsaved_text()
    made.add(turn_pb2.TurnEvent(text_delta=turn_pb2.TextDelta(text="whole")))
    assert journal.text_of(made.unsaved()) == "whole"
    assert made.unsaved()[-1].position == 1 + 4 + 5
