"""The log and what is folded from it, on a real PostgreSQL."""

import json
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit.database import Database, fresh_user
from tests.audit.histories import ConversationHistory

_ACTIONS: dict[str, Callable[[ConversationHistory, int], None]] = {
    "append": lambda history, n: history.append(n % 3 + 1, n % 2),
    "rename": lambda history, n: history.rename(f"title {n}"),
    "truncate": lambda history, n: history.truncate(n % 4 + 1),
}
_histories = st.tuples(
    st.lists(st.tuples(st.sampled_from(sorted(_ACTIONS)), st.integers(0, 9)), max_size=8), st.booleans()
)


def _history(user_id: str, name: str, actions: list[tuple[str, int]], *, deleted: bool) -> ConversationHistory:
    history = ConversationHistory(user_id, name)
    history.create(f"title of {name}")
    for action, n in actions:
        _ACTIONS[action](history, n)
    if deleted:
        history.delete()
    return history


def _positions(database: Database, user_id: str) -> list[int]:
    rows = database.run("SELECT position FROM goose.events WHERE user_id = %s ORDER BY position", [user_id])
    return [row[0] for row in rows]


def _conversation(database: Database, user_id: str, conversation_id: str) -> dict[str, Any]:
    query = "SELECT to_jsonb(c) - 'refreshed_at' FROM goose.conversations c WHERE user_id = %s AND id = %s"
    ((row,),) = database.run(query, [user_id, conversation_id])
    assert isinstance(row, dict)
    return row


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_and_repetition_do_not_matter(database: Database, data: st.DataObject) -> None:
    """Whatever order, grouping and repetition a broker makes of the same events, log and read model are the same."""
    user_id = fresh_user()
    drawn = data.draw(st.lists(_histories, min_size=1, max_size=2))
    histories = [_history(user_id, f"c{n}", actions, deleted=gone) for n, (actions, gone) in enumerate(drawn)]
    events = [event for history in histories for event in history.events]
    repeated = data.draw(st.lists(st.sampled_from(events), max_size=5))
    shuffled = data.draw(st.permutations(events + repeated))
    while shuffled:
        size = data.draw(st.integers(1, len(shuffled)))
        database.call("append_events", {"events": shuffled[:size]})
        shuffled = shuffled[size:]

    logged = database.run("SELECT event_id FROM goose.events WHERE user_id = %s", [user_id])
    assert sorted(row[0] for row in logged) == sorted(event["event_id"] for event in events)
    for history in histories:
        row = _conversation(database, user_id, history.id)
        assert (row["title"], row["metadata"]) == (history.title, history.metadata)
        assert (row["revision"], row["last_sequence"]) == (history.revision, history.last_sequence)
        assert row["message_count"] == history.message_count
        assert (row["deleted_at"] is not None) == history.deleted
        ((seen,),) = database.run(
            "SELECT seen = int8multirange(int8range(1, %s, '[]')) FROM goose.revisions "
            "WHERE user_id = %s AND entity_id = %s",
            [history.revision, user_id, history.id],
        )
        assert seen


def test_positions_are_consecutive(database: Database) -> None:
    """Positions rise by one from event to event, repeated ones in between or not."""
    user_id = fresh_user()
    history = _history(user_id, "c", [("append", 1)] * 5, deleted=False)
    before = database.call("append_events", {"events": []})["head"]
    first = database.call("append_events", {"events": history.events[:4]})
    again = database.call("append_events", {"events": history.events})
    assert (first["appended"], first["head"]) == (4, before + 4)
    assert (again["appended"], again["head"]) == (len(history.events) - 4, before + len(history.events))
    assert _positions(database, user_id) == list(range(before + 1, before + len(history.events) + 1))


def test_a_reader_never_sees_a_gap_that_fills_later(database: Database) -> None:
    """While one batch is not committed, a later one waits: whoever read up to a position has all before it."""
    one, two = fresh_user(), fresh_user()
    first = _history(one, "c", [], deleted=False).events
    second = _history(two, "c", [], deleted=False).events
    with psycopg.connect(database.url) as slow, psycopg.connect(database.url, autocommit=True) as fast:
        slow.execute("SELECT goose.append_events(%s::jsonb)", [json.dumps({"events": first})])
        fast.execute("SET lock_timeout = '100ms'")
        with pytest.raises(psycopg.errors.LockNotAvailable):
            fast.execute("SELECT goose.append_events(%s::jsonb)", [json.dumps({"events": second})])
        slow.commit()
        fast.execute("SELECT goose.append_events(%s::jsonb)", [json.dumps({"events": second})])
    assert _positions(database, two)[0] == _positions(database, one)[-1] + 1


def test_same_ids_of_two_users_are_two_conversations(database: Database) -> None:
    """A conversation id and an event id are a user's own: another user's equal ones change nothing of them."""
    one, two = fresh_user(), fresh_user()
    for user_id, title in ((one, "first"), (two, "second")):
        history = ConversationHistory(user_id, "same")
        history.create(title)
        assert database.call("append_events", {"events": history.events})["appended"] == 1
    assert _conversation(database, one, "same")["title"] == "first"
    assert _conversation(database, two, "same")["title"] == "second"


def test_a_new_life_starts_empty(database: Database) -> None:
    """A conversation created again under its old id shows nothing of the earlier life, in whatever order both come."""
    user_id = fresh_user()
    old = ConversationHistory(user_id, "c", incarnation=0)
    old.create("old")
    old.append(3, 2)
    old.delete()
    new = ConversationHistory(user_id, "c", incarnation=1)
    new.create("new")
    database.call("append_events", {"events": new.events})
    database.call("append_events", {"events": old.events})
    row = _conversation(database, user_id, "c")
    assert (row["incarnation"], row["title"], row["message_count"], row["deleted_at"]) == (1, "new", 0, None)


def test_gaps_are_what_the_owner_has_and_the_log_has_not(database: Database) -> None:
    """A lost revision, part or end is found; what was marked as lost for good is not asked for again."""
    user_id = fresh_user()
    history = _history(user_id, "c", [("append", 1)] * 6, deleted=False)
    lost = {3: None, 5: 2, 7: None}
    kept = [e for e in history.events if not (e["revision"] in lost and lost[e["revision"]] in {None, e["part"]})]
    database.call("append_events", {"events": kept})
    asked = {
        "entity_type": "conversation",
        "entities": [{"user_id": user_id, "id": "c", "incarnation": 0, "revision": history.revision}],
    }
    gaps = database.call("find_gaps", asked)["items"]
    assert [(gap["first"], gap["last"]) for gap in gaps] == [(3, 3), (5, 5), (7, 7)]

    database.call("mark_lost", {"entity_type": "conversation", "gaps": gaps[:1]})
    assert [gap["first"] for gap in database.call("find_gaps", asked)["items"]] == [5, 7]
    database.call("append_events", {"events": history.events})
    assert database.call("find_gaps", asked)["items"] == []


def test_a_snapshot_and_the_events_around_it_agree(database: Database) -> None:
    """What the owner said in between is kept, and later events count on from it, in whatever order they come."""
    user_id = fresh_user()
    history = ConversationHistory(user_id, "c")
    history.create("title")
    history.append(2, 0)
    snapshot = {
        "user_id": user_id, "id": "c", "incarnation": 0, "revision": 2, "deleted": False, "title": "title",
        "last_sequence": 2, "message_count": 2, "first_sequence": 1, "max_messages": 10,
        "created_at": "2026-01-01T00:00:01Z", "updated_at": "2026-01-01T00:00:02Z",
    }  # fmt: skip
    history.append(3, 1)
    database.call("append_events", {"events": history.events[2:]})
    database.call("apply_snapshots", {"snapshots": [snapshot]})
    database.call("append_events", {"events": history.events[:2]})
    row = _conversation(database, user_id, "c")
    assert (row["message_count"], row["max_messages"], row["revision"]) == (6, 10, 3)
    database.call("apply_snapshots", {"snapshots": [snapshot], "again": True})
    assert _conversation(database, user_id, "c")["message_count"] == 6


def test_the_query_of_the_operators_runs_as_it_is(database: Database) -> None:
    """Events of the last hour can be counted by type and entity with plain SQL."""
    user_id = fresh_user()
    history = ConversationHistory(user_id, "c")
    history.create("now")
    ((now,),) = database.run("SELECT now()::text")
    database.call("append_events", {"events": [history.events[0] | {"timestamp": now}]})
    rows = database.run(
        "SELECT event_type, entity_type, COUNT(*) FROM goose.events "
        "WHERE timestamp > NOW() - INTERVAL '1 hour' GROUP BY event_type, entity_type"
    )
    assert {(kind, entity) for kind, entity, _ in rows} >= {("goose.conversation.created", "conversation")}
    database.run("REFRESH MATERIALIZED VIEW CONCURRENTLY goose.event_counts_hourly")
    assert database.run("SELECT events FROM goose.event_counts_hourly WHERE event_type = 'goose.conversation.created'")


def test_children_before_parents(database: Database) -> None:
    """An execution and a session that are heard of before recipe and conversation get placeholders, filled in later."""
    user_id = fresh_user()

    def event(topic: str, kind: str, entity_id: str, revision: int, data: dict[str, Any]) -> dict[str, Any]:
        return {
            "event_id": f"{entity_id}.{revision}", "topic": topic, "event_type": topic, "entity_type": kind,
            "entity_id": entity_id, "user_id": user_id, "timestamp": f"2026-01-01T00:00:0{revision}Z",
            "revision": revision, "incarnation": 0, "part": 1, "parts": 1, "data": data, "metadata": {},
        }  # fmt: skip

    started = event("goose.recipe.started", "execution", "x", 1, {"recipeId": "r"})
    done = event("goose.recipe.completed", "execution", "x", 2, {"recipeId": "r"})
    session = event("goose.agent.session.started", "session", "s", 1, {"conversationId": "c"})
    created = event("goose.recipe.created", "recipe", "r", 1, {"name": "cook"})
    database.call("append_events", {"events": [done, session]})
    database.call("append_events", {"events": [created, started]})
    query = """
        SELECT e.status, r.name FROM goose.recipe_executions e
        JOIN goose.recipes r ON r.id = e.recipe_id AND r.user_id = e.user_id WHERE e.user_id = %s
    """
    assert database.run(query, [user_id]) == [("completed", "cook")]
    assert database.run("SELECT conversation_id FROM goose.agent_sessions WHERE user_id = %s", [user_id]) == [("c",)]


def test_an_erased_user_leaves_no_content(database: Database) -> None:
    """Read model and payloads go, that something happened stays, and what comes late is logged without its payload."""
    user_id = fresh_user()
    history = _history(user_id, "c", [("append", 2), ("rename", 1)], deleted=False)
    *early, late = history.events
    database.call("append_events", {"events": early})
    erased = early[0] | {
        "event_id": f"erased.{user_id}", "topic": "goose.user.erased", "event_type": "goose.user.erased",
        "entity_type": "user", "entity_id": user_id, "revision": 0, "data": {"erasureId": "e1"},
    }  # fmt: skip
    database.call("append_events", {"events": [erased]})
    answer: dict[str, Any] = {"complete_time": None}
    calls = 0
    while answer["complete_time"] is None:
        answer = database.call("erase_user", {"user_id": user_id, "erasure_id": "e1", "limit": 2})
        calls += 1
    assert calls > 1
    database.call("append_events", {"events": [late]})
    logged = database.run("SELECT topic, data FROM goose.events WHERE user_id = %s ORDER BY position", [user_id])
    assert len(logged) == len(history.events) + 1
    assert [data for topic, data in logged if topic != "goose.user.erased"] == [{}] * len(history.events)
    assert database.run("SELECT 1 FROM goose.conversations WHERE user_id = %s", [user_id]) == []
    assert answer["items"] == len(early) + 1


def test_appending_looks_at_what_it_appends_alone(database: Database) -> None:
    """An append reads no more of the log when the log is long: no plan of a connection's first calls reads it whole."""
    user_id = fresh_user()
    history = ConversationHistory(user_id, "c")
    history.create("long")
    for _ in range(600):
        history.append(1, 1)
    query = (
        "SELECT sum(idx_tup_fetch + seq_tup_read)::bigint FROM pg_stat_xact_user_tables "
        "WHERE schemaname = 'goose' AND relname IN ('events', 'revisions')"
    )
    read: list[int] = []
    with psycopg.connect(database.url) as connection:
        for start in range(0, len(history.events), 20):
            request = json.dumps({"events": history.events[start : start + 20]})
            connection.execute("SELECT goose.append_events(%s::jsonb)", [request])
            ((total,),) = connection.execute(query).fetchall()
            read.append(total - sum(read))
    assert max(read[-10:]) <= 2 * max(read[1:10])


def _indexed(database: Database, history: ConversationHistory, last: int) -> None:
    texts = [{"sequence": n, "message_id": f"m{n}", "role": "user", "content": f"text {n}"} for n in range(1, last + 1)]
    for start in range(0, last, 500):
        database.call(
            "index_messages",
            {
                "user_id": history.user_id,
                "conversation_id": history.id,
                "incarnation": history.incarnation,
                "messages": texts[start : start + 500],
                "indexed_sequence": min(start + 500, last),
            },
        )


def test_an_append_costs_the_same_however_long_the_conversation(database: Database) -> None:
    """Logging an append reads no more of the search index for a conversation of 3,000 messages than it writes."""
    history = ConversationHistory(fresh_user(), "long")
    history.create("long")
    history.append(3000, 0)
    database.call("append_events", {"events": history.events})
    _indexed(database, history, 3000)
    logged = len(history.events)
    history.append(1, 0)
    fetched = "SELECT idx_tup_fetch + seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'message_search'"
    with psycopg.connect(database.url) as connection:
        ((before,),) = connection.execute(fetched).fetchall()
        request = json.dumps({"events": history.events[logged:]})
        connection.execute("SELECT goose.append_events(%s::jsonb)", [request])
        ((after,),) = connection.execute(fetched).fetchall()
    assert after - before == 0
    assert _conversation(database, history.user_id, "long")["last_sequence"] == 3001


def test_what_a_truncation_takes_away_leaves_the_index(database: Database) -> None:
    """Messages that are truncated or deleted go from the search index, and no others."""
    history = ConversationHistory(fresh_user(), "cut")
    history.create("cut")
    history.append(100, 0)
    database.call("append_events", {"events": history.events})
    _indexed(database, history, 100)

    def left() -> list[int]:
        query = "SELECT sequence FROM goose.message_search WHERE user_id = %s ORDER BY 1"
        return [sequence for (sequence,) in database.run(query, [history.user_id])]

    logged = len(history.events)
    history.truncate(40)
    database.call("append_events", {"events": history.events[logged:]})
    assert left() == list(range(1, 61))
    logged = len(history.events)
    history.delete()
    database.call("append_events", {"events": history.events[logged:]})
    assert left() == []
