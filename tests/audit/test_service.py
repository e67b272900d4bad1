"""The audit service in this process: a real gRPC server and a real PostgreSQL."""

import asyncio
import json
import unicodedata
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import grpc
import pytest
from google.protobuf import json_format, struct_pb2, timestamp_pb2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.audit.v1 import log_service_pb2 as log_api
from gaggle.common.v1 import event_pb2
from services.audit.erasing import Erasure
from services.audit.handlers import LogWriter, TopicLog
from services.audit.reconciliation import Pace, Reconciliation
from services.audit.tail import LogTail
from services.runtime import topics
from services.runtime.callbacks import TopicEvent
from services.runtime.errors import UnavailableError
from services.runtime.hints import Hints
from tests.audit.database import fresh_user
from tests.audit.serving import Served
from tests.conditions import eventually
from tests.runtime.memory import settled
from tests.runtime.test_hints import Fanout

_WITHIN = 10.0
_TOOL = topics.TOOL_EXECUTED


def _tool_event(user_id: str, event_id: str, **more: Any) -> bytes:
    return json.dumps({"eventId": event_id, "eventType": _TOOL, "userId": user_id, **more}).encode()


async def _refusal(call: Any) -> tuple[grpc.StatusCode, str, set[str]]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    reason, fields = "", set()
    status = rpc_status.from_call(caught.value)
    assert status is not None
    for detail in status.details:
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(bad):
            fields = {one.field for one in bad.field_violations}
    return caught.value.code(), reason, fields


_UNKNOWN_COUNT = api.CountEventsRequest.FromString(b"\x10\x63")
_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize(
    ("method", "request_", "code", "reason", "fields"),
    [
        pytest.param("ListEvents", api.ListEventsRequest(page_size=-1), _INVALID, "INVALID_FIELD", {"page_size"},
                     id="negative page size"),
        pytest.param("ListEvents", api.ListEventsRequest(page_token="x"), _INVALID, "INVALID_PAGE_TOKEN",
                     {"page_token"}, id="bad page token"),
        pytest.param("ListEvents", api.ListEventsRequest(filter=api.EventFilter(event_types=["x"] * 33)), _INVALID,
                     "INVALID_FIELD", {"filter.event_types"}, id="too many types"),
        pytest.param("ListEvents", api.ListEventsRequest(filter=api.EventFilter(entity_id="\0")), _INVALID,
                     "INVALID_FIELD", {"filter.entity_id"}, id="what no row can hold"),
        pytest.param("ListEvents", api.ListEventsRequest(filter=api.EventFilter(
                     start_time=timestamp_pb2.Timestamp(seconds=2**60))), _INVALID, "INVALID_FIELD",
                     {"filter.start_time"}, id="no time at all"),
        pytest.param("CountEvents", _UNKNOWN_COUNT, _INVALID, "INVALID_FIELD", {"by"},
                     id="unknown count"),
        pytest.param("Search", api.SearchRequest(), _INVALID, "INVALID_FIELD", {"query"}, id="empty search"),
        pytest.param("Search", api.SearchRequest(query="x" * 1025), _INVALID, "INVALID_FIELD", {"query"},
                     id="long search"),
        pytest.param("Search", api.SearchRequest(query="x", page_token="AAAA"), _INVALID, "INVALID_PAGE_TOKEN",
                     {"page_token"}, id="bad page token of a search"),
        pytest.param("Search", api.SearchRequest(query="x", user_id="other"), _DENIED, "ROLE_REQUIRED", set(),
                     id="another user's messages"),
        pytest.param("QueryConversations", api.QueryConversationsRequest(user_id="other"), _DENIED, "ROLE_REQUIRED",
                     set(), id="another user's conversations"),
        pytest.param("QueryConversations", api.QueryConversationsRequest(metadata={str(n): "" for n in range(9)}),
                     _INVALID, "INVALID_FIELD", {"metadata"}, id="too many metadata"),
        pytest.param("ListDeadLetters", api.ListDeadLettersRequest(), _DENIED, "ROLE_REQUIRED", set(),
                     id="dead letters as a user"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(event_type="x")), _INVALID,
                     "INVALID_FIELD", {"topic"}, id="unknown topic"),
        pytest.param("PublishEvent", api.PublishEventRequest(topic=_TOOL), _INVALID, "INVALID_FIELD",
                     {"event.event_type"}, id="no type"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(
                     event_type=_TOOL, event_id="conversation.c.0.1.1")), _INVALID, "INVALID_FIELD",
                     {"event.event_id"}, id="an id of the mesh's own kind"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(
                     event_type=_TOOL, entity_type="conversation", entity_id="c", revision=2)), _INVALID,
                     "INVALID_FIELD", {"event.revision"}, id="a revision of someone else's"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(
                     event_type=topics.CONVERSATION_DELETED)), _DENIED, "SERVICE_NOT_ALLOWED", set(),
                     id="a topic of the mesh's own"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(
                     event_type=_TOOL, user_id="other")), _DENIED, "ROLE_REQUIRED", set(), id="another's event"),
        pytest.param("PublishEvent", api.PublishEventRequest(event=event_pb2.Event(
                     event_type=_TOOL, metadata={"x": "x" * 2**20})), grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE",
                     set(), id="too large"),
    ],
)  # fmt: skip
async def test_refuses(
    served: Served, method: str, request_: Any, code: grpc.StatusCode, reason: str, fields: set[str]
) -> None:
    """Every wrong request is answered with its code, its reason and the fields at fault."""
    call = getattr(served.stub, method)(request_, metadata=served.as_user(fresh_user()))
    assert await _refusal(call) == (code, reason, fields)


async def test_pages_are_whole_and_for_one_list_alone(served: Served) -> None:
    """Pages put together are the list, in either direction; a token is good for its own list and caller alone."""
    user_id = fresh_user()
    metadata = served.as_user(user_id)
    assert set(await served.take(_TOOL, *(_tool_event(user_id, f"e{n}") for n in range(7)))) == {"SUCCESS"}
    request = api.ListEventsRequest()
    for descending in (False, True):
        request = api.ListEventsRequest(page_size=3, descending=descending)
        seen: list[str] = []
        while True:
            page = await served.stub.ListEvents(request, metadata=metadata)
            seen += [one.event.event_id for one in page.entries]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        expected = [f"e{n}" for n in range(7)]
        assert seen == (expected[::-1] if descending else expected)
    other = api.ListEventsRequest(page_token=request.page_token, filter=api.EventFilter(entity_id="x"))
    assert (await _refusal(served.stub.ListEvents(other, metadata=metadata)))[1] == "INVALID_PAGE_TOKEN"
    call = served.stub.ListEvents(request, metadata=served.as_user(fresh_user()))
    assert (await _refusal(call))[1] == "INVALID_PAGE_TOKEN"


async def test_filters_hold_together(served: Served) -> None:
    """All parts of a filter must hold; the start is included, the end is not."""
    user_id = fresh_user()
    for n in range(4):
        topic = _TOOL if n % 2 else topics.EXTENSION_LOADED
        body = {"eventId": f"e{n}", "userId": user_id, "entityId": f"x{n // 2}", "timestamp": f"2026-01-01T00:00:0{n}Z"}
        await served.take(topic, json.dumps(body).encode())

    async def ids(**parts: Any) -> list[str]:
        request = api.ListEventsRequest(filter=api.EventFilter(**parts))
        return [
            one.event.event_id
            for one in (await served.stub.ListEvents(request, metadata=served.as_user(user_id))).entries
        ]

    start = timestamp_pb2.Timestamp()
    start.FromJsonString("2026-01-01T00:00:01Z")
    end = timestamp_pb2.Timestamp()
    end.FromJsonString("2026-01-01T00:00:03Z")
    assert await ids(start_time=start, end_time=end) == ["e1", "e2"]
    assert await ids(event_types=[_TOOL], entity_id="x1") == ["e3"]
    assert await ids(entity_type="extension") == ["e0", "e2"]


async def test_a_published_event_comes_back_the_same(served: Served) -> None:
    """PublishEvent completes an event from the token and writes it the same each time; logged, it reads as it was."""
    user_id = fresh_user()
    event = event_pb2.Event(event_id="mine", event_type="task.created", entity_type="task", entity_id="t", revision=4)
    event.timestamp.FromJsonString("2026-01-01T00:00:00Z")
    event.data.update({"n": 1.5, "list": [1, "two"]})
    request = api.PublishEventRequest(event=event, topic=topics.TASK_EVENTS)
    served.broker.published.clear()
    for _ in range(2):
        response = await served.stub.PublishEvent(request, metadata=served.as_user(user_id))
        assert response.event_id == "mine"
    first, second = served.broker.published
    assert first == second
    assert json.loads(first[1])["entity_id"] == "t"
    assert first[2] == {"cloudevent.id": "mine"}
    await served.take(first[0], first[1])
    page = await served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    event.user_id = user_id
    assert page.entries[0].event == event
    assert isinstance(page.entries[0].event.data, struct_pb2.Struct)


async def test_a_broker_that_is_away_is_said(served: Served) -> None:
    """PublishEvent answers UNAVAILABLE while the broker is away: nothing is kept that would be lost."""
    served.broker.failure = UnavailableError("pubsub")
    event = event_pb2.Event(event_type=_TOOL)
    call = served.stub.PublishEvent(api.PublishEventRequest(event=event), metadata=served.as_user(fresh_user()))
    try:
        assert await _refusal(call) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", set())
    finally:
        served.broker.failure = None


async def test_half_read_results_are_noticed(served: Served) -> None:
    """A result that a lost connection cut off is UNAVAILABLE, never an empty list; a delivery is asked for again."""
    user_id = fresh_user()
    served.binding.cut_off = 1
    call = served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    assert (await _refusal(call))[0] == grpc.StatusCode.UNAVAILABLE
    served.binding.cut_off = 1
    assert await served.take(_TOOL, _tool_event(user_id, "e")) == ["RETRY"]
    assert await served.take(_TOOL, _tool_event(user_id, "e")) == ["SUCCESS"]
    page = await served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    assert [one.event.event_id for one in page.entries] == ["e"]


async def test_one_bad_event_does_not_hold_up_a_batch(served: Served) -> None:
    """An event that only the database refuses becomes a dead letter; the others of its batch are logged."""
    user_id = fresh_user()
    payloads = [_tool_event(user_id, f"e{n}") for n in range(5)]
    served.binding.refuses = "poison"
    outcomes = await served.take(_TOOL, *payloads[:2], _tool_event(user_id, "poison"), *payloads[2:])
    served.binding.refuses = ""
    assert set(outcomes) == {"SUCCESS"}
    page = await served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    assert sorted(one.event.event_id for one in page.entries) == [f"e{n}" for n in range(5)]
    query = "SELECT error LIKE '%%SQLSTATE 22P02%%' FROM goose.dead_letters WHERE user_id = %s"
    assert served.database.run(query, [user_id]) == [(True,)]


async def test_the_deepest_event_can_be_read(served: Served) -> None:
    """What is accepted can be listed: data as deep and numbers as large as the reader allows come back whole."""
    user_id = fresh_user()
    data: Any = {"n": 1.7e308}
    for _ in range(28):
        data = {"d": data}
    assert await served.take(_TOOL, _tool_event(user_id, "deep", data=data)) == ["SUCCESS"]
    page = await served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    assert json_format.MessageToDict(page.entries[0].event.data) == data


async def test_deliveries_at_once_share_statements(served: Served) -> None:
    """Deliveries that arrive together are written together: fewer statements than deliveries, and nothing lost."""
    user_id = fresh_user()
    before = served.binding.statements
    await asyncio.gather(*(served.take(_TOOL, _tool_event(user_id, f"e{n}")) for n in range(50)))
    assert served.binding.statements - before <= 5
    counted = await served.stub.CountEvents(api.CountEventsRequest(), metadata=served.as_user(user_id))
    assert counted.total == 50


async def test_what_came_late_by_the_dead_letter_topic_is_logged(served: Served) -> None:
    """An event that could not be delivered in time is logged under its own topic; what names none is a dead letter."""
    user_id = fresh_user()
    known = TopicEvent("ce", "dead-letter.audit", "", _tool_event(user_id, "late"), "")
    unknown = TopicEvent(f"ce-{user_id}", "dead-letter.audit", "", b'{"eventType": "?"}', "")
    assert [one.name for one in await served.log.take_late([known, unknown])] == ["SUCCESS", "SUCCESS"]
    page = await served.stub.ListEvents(api.ListEventsRequest(), metadata=served.as_user(user_id))
    assert [(one.topic, one.event.event_id) for one in page.entries] == [(_TOOL, "late")]
    query = "SELECT topic FROM goose.dead_letters WHERE event_id = %s"
    assert served.database.run(query, [f"ce-{user_id}"]) == [("dead-letter.audit",)]


async def test_a_watcher_wakes_for_this_process_and_for_others(served: Served) -> None:
    """A watcher gets what this process logs and what another one does, and hears a heartbeat when there is nothing."""
    user_id = fresh_user()
    stream = served.stub.WatchEvents(api.WatchEventsRequest(), metadata=served.as_user(user_id), timeout=_WITHIN)
    assert not (await stream.read()).entries
    polling = asyncio.create_task(served.tail.run())

    async def next_ids() -> list[str]:
        while True:
            response = await stream.read()
            if response.entries:
                return [one.event.event_id for one in response.entries]

    await served.take(_TOOL, _tool_event(user_id, "here"))
    assert await next_ids() == ["here"]
    row = {
        "event_id": "elsewhere", "topic": _TOOL, "event_type": _TOOL, "entity_type": "tool", "entity_id": "",
        "user_id": user_id, "timestamp": "2026-01-01T00:00:00Z", "revision": 0, "incarnation": 0, "part": 0,
        "parts": 0, "data": {}, "metadata": {},
    }  # fmt: skip
    await asyncio.to_thread(served.database.call, "append_events", {"events": [row]})
    assert await next_ids() == ["elsewhere"]
    stream.cancel()
    polling.cancel()


async def test_the_log_is_followed_whole_and_read_by_user(served: Served) -> None:
    """Sync follows everybody's events and reads one user's in pages; a position beyond the end is refused."""
    ann, bob = fresh_user(), fresh_user()
    stream = served.log_stub.FollowLog(log_api.FollowLogRequest(), metadata=served.as_sync("sync"), timeout=_WITHIN)
    begin = await stream.read()
    assert not begin.entries
    await served.take(_TOOL, _tool_event(ann, f"{ann}.1"), _tool_event(bob, f"{bob}.1"))
    followed: list[str] = []
    position = 0
    while len(followed) < 2:
        response = await stream.read()
        followed += [one.event.event_id for one in response.entries]
        position = response.position
    stream.cancel()
    assert followed == [f"{ann}.1", f"{bob}.1"]

    count = 502
    await served.take(_TOOL, *(_tool_event(ann, f"{ann}.{number}") for number in range(2, count)))
    read: list[str] = []
    after = begin.position
    more = True
    while more:
        request = log_api.ReadLogRequest(after_position=after)
        page = await served.log_stub.ReadLog(request, metadata=served.as_sync(ann), timeout=_WITHIN)
        read += [one.event.event_id for one in page.entries]
        assert len(page.entries) <= 500
        assert page.position > after
        after, more = page.position, page.more
    assert sorted(read) == sorted(f"{ann}.{number}" for number in range(1, count))
    assert after > position
    for call in (
        served.log_stub.ReadLog(log_api.ReadLogRequest(after_position=after + 10**9), metadata=served.as_sync(ann)),
        served.log_stub.FollowLog(
            log_api.FollowLogRequest(after_position=after + 10**9), metadata=served.as_sync(ann)
        ).read(),
    ):
        assert await _refusal(call) == (_INVALID, "INVALID_FIELD", {"after_position"})


@pytest.mark.parametrize("method", ["ReadLog", "FollowLog"])
async def test_only_the_sync_service_reads_the_log_so(served: Served, method: str) -> None:
    """Neither a user nor an admin gets the whole log by the way that is sync's."""
    for roles in ((), ("admin",)):
        request = getattr(log_api, f"{method}Request")()
        call = getattr(served.log_stub, method)(request, metadata=served.as_user("ann", *roles))
        asked = call.read() if method == "FollowLog" else call
        assert await _refusal(asked) == (_DENIED, "SERVICE_NOT_ALLOWED", set())


async def test_a_watcher_hears_of_what_another_process_logged(served: Served) -> None:
    """A watcher at one replica is woken by what another one logs, long before it would look by itself."""
    fanout = Fanout()
    async with fanout.process() as here, fanout.process() as elsewhere:
        watched = LogTail(served.store, here, poll_seconds=600)
        looking = asyncio.create_task(watched.run())
        writer = LogTail(served.store, elsewhere, poll_seconds=600)
        log = TopicLog(LogWriter(served.store, writer.logged), served.store)
        head = await served.store.head()
        for number in range(3):
            waiting = asyncio.create_task(watched.wait_beyond(head, _WITHIN))
            await settled(lambda: fanout.published > 0)
            events = _append(fresh_user(), f"h{number}", 1, 1)
            event = TopicEvent(id=f"h{number}", topic=topics.MESSAGE_RECEIVED, type="", data=events, content_type="")
            assert [one.name for one in await log.take([event])] == ["SUCCESS"]
            assert await waiting
            head = await served.store.head()
        looking.cancel()


async def test_a_process_that_stops_lets_its_watchers_go(served: Served) -> None:
    """A stream that would never end does not hold up a restart: its client is told to come back."""
    hints = Hints(served.broker, "pubsub", "log-hints")  # type: ignore[arg-type]
    tail = LogTail(served.store, hints, poll_seconds=60)
    waiting = asyncio.create_task(tail.wait_beyond(10**9, _WITHIN))
    await asyncio.sleep(0)
    await tail.close()
    with pytest.raises(UnavailableError):
        await waiting


def _append(user_id: str, conversation_id: str, revision: int, last_sequence: int) -> bytes:
    data = {"conversationId": conversation_id, "messages": [{}], "lastSequence": str(last_sequence)}
    body = {
        "eventId": f"{conversation_id}.{revision}", "eventType": topics.MESSAGE_RECEIVED, "userId": user_id,
        "entityType": "conversation", "entityId": conversation_id, "revision": str(revision), "data": data,
    }  # fmt: skip
    return json.dumps(body).encode()


async def _searched(served: Served, user_id: str, query: str, **more: Any) -> api.SearchResponse:
    response = await served.stub.Search(api.SearchRequest(query=query, **more), metadata=served.as_user(user_id))
    assert isinstance(response, api.SearchResponse)
    return response


async def test_indexing_survives_failures(served: Served) -> None:
    """Messages told of become searchable, even when fetching fails at first; what is gone at the owner is given up."""
    user_id = fresh_user()
    served.owner.texts[user_id, "c1"] = ["To be or not to be", "Running <i>geese</i> & ducks", "über alles"]
    await served.take(topics.MESSAGE_RECEIVED, _append(user_id, "c1", 4, 3), _append(user_id, "c9", 1, 1))
    served.binding.cut_off = 1
    indexing = asyncio.create_task(_index(served))

    async def found() -> bool:
        return bool((await _searched(served, user_id, "to be")).hits)

    await eventually(found, within=_WITHIN, what="the message found")
    (hit,) = (await _searched(served, user_id, "run goose OR goose OR geese")).hits
    assert hit.snippet == "<b>Running</b> &lt;i&gt;<b>geese</b>&lt;/i&gt; &amp; ducks"
    assert [one.sequence for one in (await _searched(served, user_id, "über")).hits] == [3]
    assert (await _searched(served, user_id, '"not be"')).hits == []
    assert (await _searched(served, user_id, "!!!")).hits == []

    async def gone() -> bool:
        query = "SELECT deleted_at IS NOT NULL FROM goose.conversations WHERE user_id = %s AND id = 'c9'"
        return (await asyncio.to_thread(served.database.run, query, [user_id])) == [(True,)]

    await eventually(gone, within=_WITHIN, what="the vanished conversation given up")
    indexing.cancel()


async def _index(served: Served) -> None:
    while True:
        try:
            await served.indexer.run()
        except UnavailableError:
            continue


SIGNS: dict[str, tuple[str, set[int], str]] = {
    "a word within a clause": ("天气", {1, 2}, "今天北京的<b>天气</b>怎么样"),
    "a clause": ("北京的天气", {1}, "今天<b>北京的天气</b>怎么样"),
    "one sign": ("样", {1}, "今天北京的天气怎么<b>样</b>"),
    "in any order": ("天气 北京", {1}, "今天<b>北京</b>的<b>天气</b>怎么样"),
    "either": ("怎么 OR 上海", {1, 2}, ""),
    "without": ("天气 -北京", {2}, ""),
    "a quoted clause": ('"北京的天气"', {1}, ""),
    "beside other letters": ("iphone15 手机", {3}, "我的 iPhone15<b>手机</b> &lt;坏&gt;了"),
    "without a space": ("iphone15手机", {3}, ""),
    "quoted with other letters": ('"my 手机 iphone15"', set(), ""),
    "kana": ("カメラ", {4}, "新しい<b>カメラ</b>を買いました"),
    "half-width kana": ("ｶﾒﾗ", {4}, ""),
    "a stem of Korean": ("학교", {5}, "오늘 <b>학교</b>에서 만나요"),
    "Hangul taken apart": (unicodedata.normalize("NFD", "학교"), {5}, ""),
    "beyond the first plane": ("𠮷野家", {6}, "<b>𠮷野家</b>で昼ご飯"),
    "signs that are there, not together": ("天怎", set(), ""),
}


@pytest.mark.parametrize(("query", "expected", "snippet"), SIGNS.values(), ids=SIGNS.keys())
async def test_scripts_without_spaces(served: Served, query: str, expected: set[int], snippet: str) -> None:
    """Chinese, Japanese and Korean are found by any part of a clause, with all that a query may say."""
    user_id = fresh_user()
    served.owner.texts[user_id, "c3"] = [
        "今天北京的天气怎么样",
        "上海天气很好",
        "我的 iPhone15手机 <坏>了",
        "新しいカメラを買いました",
        "오늘 학교에서 만나요",
        "𠮷野家で昼ご飯",
    ]
    await _rebuild(served, user_id)
    hits = (await _searched(served, user_id, query)).hits
    assert {one.sequence for one in hits} == expected
    if snippet:
        assert snippet in [one.snippet for one in hits]


async def test_long_texts_without_spaces(served: Served) -> None:
    """A text of many thousand signs is found by any part of it, and shown around that."""
    user_id = fresh_user()
    signs = [chr(0x4E00 + number) for number in range(20_000)]
    served.owner.texts[user_id, "c4"] = ["".join(signs)]
    await _rebuild(served, user_id)
    wanted = "".join(signs[19_000:19_004])
    (hit,) = (await _searched(served, user_id, wanted)).hits
    before, after = "".join(signs[18_961:19_000]), "".join(signs[19_004:19_081])
    assert hit.snippet == f"… {before}<b>{wanted}</b>{after} …"


async def test_pages_of_finds_are_whole(served: Served) -> None:
    """Pages of finds put together are all of them, each once."""
    user_id = fresh_user()
    served.owner.texts[user_id, "c2"] = [f"needle {'hay ' * (n % 3)}" for n in range(7)]
    await _rebuild(served, user_id)
    seen: list[int] = []
    token = ""
    while True:
        page = await _searched(served, user_id, "needle", page_size=3, page_token=token)
        seen += [one.sequence for one in page.hits]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]


async def _rebuild(served: Served, user_id: str) -> api.RebuildResponse:
    metadata = served.as_user("root", "admin")
    stream = served.stub.Rebuild(api.RebuildRequest(user_id=user_id), metadata=metadata)
    last: api.RebuildResponse = [response async for response in stream][-1]
    return last


async def test_rebuilt_rows_say_what_the_owner_says(served: Served) -> None:
    """A rebuild replaces what was falsified, brings back what was lost and takes away what the owner has not."""
    user_id = fresh_user()
    for n in range(3):
        served.owner.texts[user_id, f"c{n}"] = ["text"] * n
    await _rebuild(served, user_id)
    spoil = [
        "UPDATE goose.conversations SET title = 'false', revision = 99, deleted_at = now() WHERE user_id = %s",
        "DELETE FROM goose.conversations WHERE user_id = %s AND id = 'c2'",
        "INSERT INTO goose.conversations (user_id, id, incarnation, created_at) VALUES (%s, 'made-up', 0, now())",
        "UPDATE goose.message_search SET content = 'false' WHERE user_id = %s",
    ]
    for statement in spoil:
        served.database.run(statement, [user_id])
    last = await _rebuild(served, user_id)
    assert (last.users, last.conversations, last.messages, last.done) == (1, 3, 3, True)

    async def listed(**more: Any) -> list[Any]:
        request = api.QueryConversationsRequest(**more)
        response = await served.stub.QueryConversations(request, metadata=served.as_user(user_id))
        return list(response.conversations)

    assert [one.id for one in await listed()] == ["c2", "c1", "c0"]
    assert [one.id for one in await listed(order_by_update_time=True)] == ["c0", "c1", "c2"]
    (one,) = await listed(metadata={"n": "c1"})
    assert (one.title, one.etag, one.message_count, one.retention.max_messages) == ("title of c1", "2", 1, 7)
    assert (one.retention.ttl.ToMilliseconds(), one.forked_from.conversation_id, one.forked_from.sequence) == (
        60_500,
        "c0",
        3,
    )
    page = await served.stub.QueryConversations(
        api.QueryConversationsRequest(page_size=2), metadata=served.as_user(user_id)
    )
    rest = await listed(page_size=2, page_token=page.next_page_token)
    assert [one.id for one in rest] == ["c0"]
    assert len((await _searched(served, user_id, "text")).hits) == 3


async def test_lost_events_are_asked_for_again(served: Served) -> None:
    """Reconciliation has the owner publish what the log lacks, and does not ask for ever for what is lost for good."""
    user_id = fresh_user()
    served.owner.texts[user_id, "c5"] = ["a", "b", "c"]
    await served.take(topics.MESSAGE_RECEIVED, _append(user_id, "c5", 2, 1))
    reconciliation = Reconciliation(served.store, served.owner, Pace("here", interval_seconds=1, grace_seconds=0))

    async def asked() -> list[tuple[str, int, int]]:
        served.owner.republished.clear()
        await reconciliation.once()
        return [(name, low, high) for user, name, low, high in served.owner.republished if user == user_id]

    assert await asked() == [("c5", 1, 1), ("c5", 3, 4)]
    await served.take(topics.MESSAGE_RECEIVED, _append(user_id, "c5", 3, 2))
    served.owner.republishes = 0
    try:
        assert await asked() == [("c5", 1, 1), ("c5", 4, 4)]
        assert await asked() == []
    finally:
        served.owner.republishes = 1


async def test_what_is_still_queued_is_not_published_again(served: Served) -> None:
    """While the log takes events that are minutes old, what it lacks is behind them and not lost; afterwards it is."""
    user_id = fresh_user()

    async def asked(age_seconds: int, revision: int) -> list[tuple[int, int]]:
        """What is asked for again while an event of that age comes."""
        served.owner.republished.clear()
        looked = asyncio.Event()

        async def head() -> int:
            found = await find()
            looked.set()
            return found

        reconciliation = Reconciliation(served.store, served.owner, Pace("here", interval_seconds=1, grace_seconds=1))
        find = served.store.head
        alone = {(user_id, "c6"): ["a", "b", "c"]}
        with (
            patch.object(served.store, "head", head),
            patch.dict(served.owner.texts, alone, clear=True),
        ):
            going_on = asyncio.create_task(reconciliation.once())
            await looked.wait()
            body = json.loads(_append(user_id, "c6", revision, revision))
            body["timestamp"] = (datetime.now(UTC) - timedelta(seconds=age_seconds)).isoformat()
            await served.take(topics.MESSAGE_RECEIVED, json.dumps(body).encode())
            await going_on
        return [(low, high) for user, _, low, high in served.owner.republished if user == user_id]

    assert await asked(300, 1) == []
    assert await asked(5, 2) == [(3, 4)]


async def test_an_erasure_is_done_and_told(served: Served) -> None:
    """After goose.user.erased nothing of the user is found, and the completion is told under one id, however often."""
    user_id = fresh_user()
    served.owner.texts[user_id, "c1"] = ["secret"]
    await _rebuild(served, user_id)
    await served.take(_TOOL, _tool_event(user_id, "e", data={"secret": 1}))
    told = {"eventId": f"x.{user_id}", "userId": user_id, "entityId": user_id, "data": {"erasureId": f"er-{user_id}"}}
    await served.take(topics.USER_ERASED, json.dumps(told).encode())
    served.broker.published.clear()
    served.broker.failure = UnavailableError("pubsub")
    erasure = Erasure(served.store, served.broker, pubsub="pubsub", poll_seconds=0.01)
    with pytest.raises(UnavailableError):
        await erasure.run()
    served.broker.failure = None
    running = asyncio.create_task(erasure.run())

    async def published() -> list[Any]:
        return [json.loads(data) for _, data, _ in served.broker.published if user_id.encode() in data]

    (event,) = await eventually(published, within=_WITHIN, what="the completion told")
    running.cancel()
    assert event["data"] == {"erasureId": f"er-{user_id}", "service": "audit", "items": "3"}
    assert event["eventId"] == f"erasure.er-{user_id}.audit"
    assert (await _searched(served, user_id, "secret")).hits == []
    page = await served.stub.ListEvents(
        api.ListEventsRequest(filter=api.EventFilter(event_types=[_TOOL])), metadata=served.as_user(user_id)
    )
    assert [dict(one.event.data) for one in page.entries] == [{}]
