"""Agent sessions, and what a user's turns have used."""

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message as ProtoMessage

from gaggle.agent.state.v1 import document_pb2
from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import event_pb2, session_pb2
from gaggle.common.v1 import error_reason_pb2
from gaggle.conversation.v1 import message_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.agent import usage
from services.agent.store import AgentStore, Transaction, day_key, index_key, now, session_key, today
from services.runtime import paging, topics
from services.runtime.call import trace_metadata
from services.runtime.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
)
from services.runtime.events import Change, build_events
from services.runtime.ids import new_id
from services.runtime.outbox import Number
from services.runtime.requests import body_hash, first_answer, new_row, row_key

ENTITY = "session"
"""What events call it."""

INDEX_ENTRIES = 256
EVENT_REFERENCES = 256
DAY_ENTRIES = 256
MAX_DAYS = 366
TOMBSTONE_SECONDS = 7 * 24 * 3600
_DEFAULT_DAYS = 30
_EPOCH = date(1970, 1, 1)
_AT_ONCE = 25
_SERVICE = "gaggle.agent.v1.AgentService"
_ACTIVE = session_pb2.SESSION_STATUS_ACTIVE
_ENDED = session_pb2.SESSION_STATUS_ENDED


class Sessions:
    """Creates, changes and ends sessions; keeps the usage ledger."""

    def __init__(self, store: AgentStore) -> None:
        """All lies in one store."""
        self._store = store

    # -- changing

    async def create(self, user_id: str, request: api.CreateSessionRequest) -> session_pb2.Session:
        """Create a session. Raises AlreadyExistsError, FailedPreconditionError (an erased user)."""
        digest = _hash("CreateSession", request)
        session = session_pb2.Session(
            id=request.session_id or new_id(),
            name=request.name,
            working_dir=request.working_dir,
            session_type=request.session_type or "user",
            conversation_id=request.conversation_id,
            settings=request.settings,
            status=_ACTIVE,
            metadata=request.metadata,
            extra_json=request.extra_json,
        )
        request_key = row_key(user_id, request.request_id) if request.request_id else ""
        index = index_key(user_id)
        key = session_key(user_id, session.id)

        async def apply(transaction: Transaction) -> session_pb2.Session:
            first = first_answer(transaction.item(request_key), digest)
            if first is not None:
                return self._repeated(session_pb2.Session.FromString(first), session)
            earlier = transaction.read(key, document_pb2.SessionDocument)
            if undeleted(earlier) is not None:
                raise AlreadyExistsError("session", session.id)
            # Of two lives that begin in one second the later one must count for more.
            life = max(int(datetime.now(UTC).timestamp()), earlier.incarnation + 1 if earlier else 0)
            document = document_pb2.SessionDocument(session=session, incarnation=life)
            # Its lines of the ledger stay, and are not entered again.
            document.session.usage_source_id = earlier.session.usage_source_id if earlier else 0
            document.session.create_time.CopyFrom(now())
            # A deleted one of this id still stands in the index.
            await self.enter(user_id, transaction, session_id=session.id if earlier is None else "")
            answer = session_pb2.Session(id=session.id, create_time=document.session.create_time)
            if request_key:
                transaction.puts.append(new_row(request_key, digest, answer.SerializeToString()))
            payload = event_pb2.SessionStartedEvent()
            self.write(user_id, transaction, document, {topics.SESSION_STARTED: payload})
            return describe(document)

        keys = [key, index, *([request_key] if request_key else [])]
        return await self._store.change(keys, apply)

    @staticmethod
    def _repeated(first: session_pb2.Session, told: session_pb2.Session) -> session_pb2.Session:
        """Give the first answer again: it holds no text, which the same request brings along."""
        answer = session_pb2.Session()
        answer.CopyFrom(told)
        answer.id = first.id
        answer.create_time.CopyFrom(first.create_time)
        answer.update_time.CopyFrom(first.create_time)
        answer.etag = "1"
        return answer

    async def update(self, user_id: str, request: api.UpdateSessionRequest) -> session_pb2.Session:
        """Change what is set. Raises NotFoundError, ConflictError (STALE_ETAG), FailedPreconditionError (ended)."""

        def apply(document: document_pb2.SessionDocument) -> list[str]:
            if document.session.status == _ENDED:
                raise FailedPreconditionError("the session has ended", metadata={"state": "ended"})
            changed = []
            if request.HasField("name"):
                document.session.name = request.name
                changed.append("name")
            if request.HasField("conversation_id"):
                document.session.conversation_id = request.conversation_id
                changed.append("conversation")
            if request.HasField("settings"):
                document.session.settings.CopyFrom(request.settings)
                changed.append("settings")
            if request.HasField("metadata"):
                document.session.metadata.clear()
                document.session.metadata.update(request.metadata.entries)
                changed.append("metadata")
            if request.HasField("extra_json"):
                document.session.extra_json = request.extra_json
                changed.append("extra")
            if request.HasField("working_dir"):
                document.session.working_dir = request.working_dir
                changed.append("working_dir")
            if request.HasField("session_type"):
                document.session.session_type = request.session_type
                changed.append("session_type")
            return changed

        digest = _hash("UpdateSession", request)
        return await self._change(user_id, request, digest, apply, topics.SESSION_UPDATED)

    async def end(self, user_id: str, request: api.EndSessionRequest) -> session_pb2.Session:
        """End a session; one that has ended stays as it is. Raises NotFoundError, ConflictError (STALE_ETAG)."""

        def apply(document: document_pb2.SessionDocument) -> list[str]:
            if document.session.status == _ENDED:
                return []
            document.session.status = _ENDED
            document.session.end_time.CopyFrom(now())
            return ["ended"]

        return await self._change(user_id, request, _hash("EndSession", request), apply, topics.SESSION_ENDED)

    async def delete(self, user_id: str, request: api.DeleteSessionRequest) -> None:
        """Take a session away; one that was deleted is OK. Raises NotFoundError, ConflictError (STALE_ETAG)."""
        key = session_key(user_id, request.session_id)
        digest = _hash("DeleteSession", request)
        request_key = row_key(user_id, request.request_id) if request.request_id else ""

        def apply(transaction: Transaction) -> None:
            document = transaction.read(key, document_pb2.SessionDocument)
            if document is None:
                raise NotFoundError("session", request.session_id)
            if first_answer(transaction.item(request_key), digest) is not None or undeleted(document) is None:
                return
            _check_etag(document, request.etag)
            if request_key:
                transaction.puts.append(new_row(request_key, digest, b""))
            entered = document.session.usage_source_id
            document.session.CopyFrom(session_pb2.Session(id=document.session.id, usage_source_id=entered))
            document.delete_time.CopyFrom(now())
            payload = event_pb2.SessionEndedEvent(cause="deleted")
            self.write(user_id, transaction, document, {topics.SESSION_ENDED: payload}, erased=True)
            transaction.put(key, document, ttl_seconds=TOMBSTONE_SECONDS)

        await self._store.change([key, *([request_key] if request_key else [])], apply, confirm=[key])

    async def import_usage(self, user_id: str, request: api.ImportUsageRequest) -> session_pb2.Session:
        """Enter another program's lines and sums. Raises NotFoundError, ConflictError (STALE_ETAG)."""
        key, index = session_key(user_id, request.session_id), index_key(user_id)
        digest = _hash("ImportUsage", request)
        request_key = row_key(user_id, request.request_id) if request.request_id else ""
        by_day: dict[int, list[session_pb2.UsageEntry]] = {}
        for entry in request.entries:
            by_day.setdefault(entry.time.ToDatetime(UTC).toordinal() - _EPOCH.toordinal(), []).append(entry)

        async def apply(transaction: Transaction) -> session_pb2.Session:
            document = undeleted(transaction.read(key, document_pb2.SessionDocument))
            if document is None:
                raise NotFoundError("session", request.session_id)
            if first_answer(transaction.item(request_key), digest) is not None:
                return describe(document)
            _check_etag(document, request.etag)
            session = document.session
            if by_day:
                self._note_imported(user_id, transaction, session, by_day)
                session.usage_source_id = max(session.usage_source_id, request.entries[-1].source_id)
                await self.enter(user_id, transaction, day=min(by_day))
            if request.HasField("accumulated_usage"):
                session.accumulated_usage.CopyFrom(request.accumulated_usage)
            if request.HasField("last_usage"):
                session.last_usage.CopyFrom(request.last_usage)
            if request_key:
                transaction.puts.append(
                    new_row(request_key, digest, session_pb2.Session(id=session.id).SerializeToString())
                )
            payload = event_pb2.SessionUpdatedEvent(changed=["usage"])
            self.write(user_id, transaction, document, {topics.SESSION_UPDATED: payload})
            return describe(document)

        keys = [key, index, *(day_key(user_id, day) for day in by_day), *([request_key] if request_key else [])]
        return await self._store.change(keys, apply, confirm=[key])

    def _note_imported(
        self,
        user_id: str,
        transaction: Transaction,
        session: session_pb2.Session,
        by_day: dict[int, list[session_pb2.UsageEntry]],
    ) -> None:
        """Plan the lines that the session has not had before."""
        for day, entries in by_day.items():
            fresh = [one for one in entries if one.source_id > session.usage_source_id]
            for one in fresh:
                one.session_id, one.conversation_id = session.id, session.conversation_id
            if fresh:
                self.note_usage(user_id, transaction, day, *fresh)

    async def _change(self, user_id: str, request: Any, digest: bytes, alter: Any, topic: str) -> session_pb2.Session:
        key = session_key(user_id, request.session_id)
        request_key = row_key(user_id, request.request_id) if request.request_id else ""

        def apply(transaction: Transaction) -> session_pb2.Session:
            document = undeleted(transaction.read(key, document_pb2.SessionDocument))
            if document is None:
                raise NotFoundError("session", request.session_id)
            if first_answer(transaction.item(request_key), digest) is not None:
                return describe(document)
            if not (topic == topics.SESSION_ENDED and document.session.status == _ENDED):
                _check_etag(document, request.etag)
            changed = alter(document)
            if not changed:
                return describe(document)
            if request_key:
                answer = session_pb2.Session(id=request.session_id)
                transaction.puts.append(new_row(request_key, digest, answer.SerializeToString()))
            payload = (
                event_pb2.SessionEndedEvent(cause="ended")
                if topic == topics.SESSION_ENDED
                else event_pb2.SessionUpdatedEvent(changed=changed)
            )
            self.write(user_id, transaction, document, {topic: payload})
            return describe(document)

        return await self._store.change([key, *([request_key] if request_key else [])], apply, confirm=[key])

    def write(
        self,
        user_id: str,
        transaction: Transaction,
        document: document_pb2.SessionDocument,
        payloads: dict[str, Any],
        *,
        erased: bool = False,
    ) -> None:
        """Plan a session's next revision, and the event that tells of it; of one that is `erased`: nothing more."""
        document.revision += 1
        document.session.update_time.CopyFrom(now())
        for payload in () if erased else payloads.values():
            told = describe(document)
            # They may be long, and may hold what is nobody's business.
            told.settings.ClearField("system_prompt")
            told.ClearField("extra_json")
            payload.session.CopyFrom(told)
            payload.name = told.name
            payload.conversation_id = told.conversation_id
        change = Change(
            entity_type=ENTITY,
            entity_id=document.session.id,
            user_id=user_id,
            revision=document.revision,
            incarnation=document.incarnation,
            time=document.session.update_time.ToDatetime(UTC),
            traceparent=dict(trace_metadata()).get("traceparent", ""),
        )
        told_payloads = {topic: json_format.MessageToDict(payload) for topic, payload in payloads.items()}
        transaction.events += build_events(change, told_payloads)

        def numbered(number: Number) -> None:
            document.events.append(
                runtime_pb2.EventReference(
                    revision=document.revision, slot=number.slot, epoch=number.epoch, number=number.number
                )
            )
            del document.events[:-EVENT_REFERENCES]

        transaction.numbered.append(numbered)
        transaction.put(session_key(user_id, document.session.id), document)

    async def enter(self, user_id: str, transaction: Transaction, *, session_id: str = "", day: int = 0) -> None:
        """Plan to enter a session, or a day with turns, in the user's index, which the transaction has read.

        Raises FailedPreconditionError for an erased user.
        """
        key = index_key(user_id)
        index = transaction.read(key, document_pb2.UserIndex)
        if index is None:
            index = document_pb2.UserIndex()
            transaction.puts += await self._store.users.entering(user_id)
        if index.HasField("erase_time"):
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        if day and index.first_day and index.first_day <= day:
            return
        if day:
            index.first_day = day
        if session_id:
            if len(index.sessions) >= INDEX_ENTRIES:
                bucket = document_pb2.SessionBucket(sessions=index.sessions)
                place = index_key(user_id, index.buckets)
                transaction.put(place, bucket)
                index.buckets += 1
                del index.sessions[:]
            index.sessions.add(session_id=session_id)
        transaction.put(key, index)

    # -- reading

    async def get(self, user_id: str, session_id: str) -> session_pb2.Session:
        """Read a session. Raises NotFoundError."""
        document = undeleted(await self._store.read(session_key(user_id, session_id), document_pb2.SessionDocument))
        if document is None:
            raise NotFoundError("session", session_id)
        return describe(document)

    async def page(self, user_id: str, request: api.ListSessionsRequest) -> api.ListSessionsResponse:
        """List sessions, newest first."""
        size = paging.page_size(request.page_size, default=20, most=100)
        scope = ("ListSessions", user_id, str(request.status))
        cursor = paging.decode(request.page_token, *scope)
        response = api.ListSessionsResponse()
        bucket = int(cursor["k"]) if cursor else None
        position = int(cursor["p"]) if cursor else None
        index = await self._store.read(index_key(user_id), document_pb2.UserIndex) or document_pb2.UserIndex()
        current = int(index.buckets) if bucket is None else bucket
        while current >= 0:
            ids = await self.entries(user_id, index, current)
            place = len(ids) - 1 if position is None else min(position, len(ids) - 1)
            while place >= 0:
                batch = ids[max(place - _AT_ONCE + 1, 0) : place + 1]
                batch.reverse()
                for document in await self.documents(user_id, batch):
                    gone = not document.session.id or document.HasField("delete_time")
                    if gone or (request.status and document.session.status != request.status):
                        place -= 1
                        continue
                    if len(response.sessions) == size:
                        response.next_page_token = paging.encode({"k": current, "p": place}, *scope)
                        return response
                    response.sessions.append(describe(document))
                    response.sessions[-1].ClearField("extra_json")
                    place -= 1
            current, position = current - 1, None
        return response

    async def entries(self, user_id: str, index: document_pb2.UserIndex, bucket: int) -> list[str]:
        """Give the ids of one bucket, oldest first."""
        if bucket == index.buckets:
            return [one.session_id for one in index.sessions]
        older = await self._store.read(index_key(user_id, bucket), document_pb2.SessionBucket)
        return [one.session_id for one in older.sessions] if older else []

    async def documents(self, user_id: str, session_ids: list[str]) -> list[document_pb2.SessionDocument]:
        """Read several sessions, in this order; those that are gone come empty."""
        keys = [session_key(user_id, one) for one in session_ids]
        found = await self._store.state.get_many(keys, confirm=keys)
        return [
            document_pb2.SessionDocument.FromString(found[key].value)
            if key in found
            else document_pb2.SessionDocument()
            for key in keys
        ]

    # -- the ledger

    async def turn_ids(self, user_id: str) -> AsyncIterator[str]:
        """Walk the turns that a user began, newest first."""
        index = await self._store.read(index_key(user_id), document_pb2.UserIndex)
        first = index.first_day if index is not None and index.first_day else today() + 1
        for day in range(today(), first - 1, -1):
            document = await self._store.read(day_key(user_id, day), document_pb2.Day)
            for turn_id in reversed(document.turn_ids if document else ()):
                yield turn_id
            for block in range(document.turn_blocks - 1 if document else -1, -1, -1):
                older = await self._store.read(day_key(user_id, day, f"t{block}"), document_pb2.Day)
                for turn_id in reversed(older.turn_ids if older else ()):
                    yield turn_id

    def note_turn(self, user_id: str, transaction: Transaction, day: int, turn_id: str) -> None:
        """Plan to enter a turn in its day, which the transaction has read."""
        key = day_key(user_id, day)
        document = transaction.read(key, document_pb2.Day) or document_pb2.Day()
        if document.erased:
            raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)
        document.turn_ids.append(turn_id)
        if len(document.turn_ids) > DAY_ENTRIES:
            block = document_pb2.Day(turn_ids=document.turn_ids)
            transaction.put(day_key(user_id, day, f"t{document.turn_blocks}"), block)
            document.turn_blocks += 1
            del document.turn_ids[:]
        transaction.put(key, document)

    def note_usage(self, user_id: str, transaction: Transaction, day: int, *entries: session_pb2.UsageEntry) -> None:
        """Plan lines of the ledger, in their day, which the transaction has read; once a day in a transaction."""
        key = day_key(user_id, day)
        document = transaction.read(key, document_pb2.Day) or document_pb2.Day()
        if document.erased:
            return
        for entry in entries:
            document.entries.append(entry)
            usage.count(document.models[entry.model], entry.usage)
            if len(document.entries) > DAY_ENTRIES:
                block = document_pb2.Day(entries=document.entries)
                transaction.put(day_key(user_id, day, f"e{document.entry_blocks}"), block)
                document.entry_blocks += 1
                del document.entries[:]
        transaction.put(key, document)

    async def usage(self, user_id: str, request: api.ListUsageRequest) -> api.ListUsageResponse:
        """Sum by day and model, newest day first. Raises InvalidArgumentError."""
        size = paging.page_size(request.page_size, default=100, most=MAX_DAYS)
        last = _day("last_day", request.last_day, today())
        first = _day("first_day", request.first_day, last - _DEFAULT_DAYS + 1)
        if not first <= last < first + MAX_DAYS:
            raise InvalidArgumentError({"first_day": f"must be before last_day, by at most {MAX_DAYS} days"})
        scope = ("ListUsage", user_id, str(first), str(last), request.model)
        cursor = paging.decode(request.page_token, *scope)
        newest = int(cursor.get("d", last))
        oldest = max(first, newest - size + 1)
        days = list(range(newest, oldest - 1, -1))
        response = api.ListUsageResponse()
        for start in range(0, len(days), _AT_ONCE):
            keys = [day_key(user_id, day) for day in days[start : start + _AT_ONCE]]
            found = await self._store.state.get_many(keys)
            for key, day in zip(keys, days[start : start + _AT_ONCE], strict=True):
                if key in found:
                    document = document_pb2.Day.FromString(found[key].value)
                    for model in sorted(document.models):
                        if not request.model or model == request.model:
                            response.days.add(day=day_text(day), model=model, usage=document.models[model])
        if oldest > first:
            response.next_page_token = paging.encode({"d": oldest - 1}, *scope)
        return response

    async def usage_entries(self, user_id: str, request: api.ListUsageEntriesRequest) -> api.ListUsageEntriesResponse:
        """List a day's lines, newest first. Raises InvalidArgumentError."""
        size = paging.page_size(request.page_size, default=100, most=1000)
        day = _day("day", request.day, today())
        scope = ("ListUsageEntries", user_id, str(day), request.session_id)
        cursor = paging.decode(request.page_token, *scope)
        document = await self._store.read(day_key(user_id, day), document_pb2.Day) or document_pb2.Day()
        block = int(cursor.get("b", document.entry_blocks))
        place = int(cursor["p"]) if cursor else None
        response = api.ListUsageEntriesResponse()
        while block >= 0:
            entries = document.entries
            if block != document.entry_blocks:
                older = await self._store.read(day_key(user_id, day, f"e{block}"), document_pb2.Day)
                entries = older.entries if older else document_pb2.Day().entries
            for index in range(len(entries) - 1 if place is None else min(place, len(entries) - 1), -1, -1):
                if request.session_id and entries[index].session_id != request.session_id:
                    continue
                if len(response.entries) == size:
                    response.next_page_token = paging.encode({"b": block, "p": index}, *scope)
                    return response
                response.entries.append(entries[index])
            block, place = block - 1, None
        return response


def undeleted(document: document_pb2.SessionDocument | None) -> document_pb2.SessionDocument | None:
    """Give a session's document, None of one that was deleted."""
    return None if document is None or document.HasField("delete_time") else document


def _check_etag(document: document_pb2.SessionDocument, etag: str) -> None:
    if etag and etag != str(document.revision):
        raise ConflictError(
            "someone else changed the session",
            reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
            metadata={"etag": etag, "current": str(document.revision)},
        )


def describe(document: document_pb2.SessionDocument) -> session_pb2.Session:
    """Give a session as callers see it."""
    session = session_pb2.Session()
    session.CopyFrom(document.session)
    session.etag = str(document.revision)
    return session


def usage_entry(
    *, model: str, turn_id: str, conversation_id: str, session_id: str, counted: message_pb2.TokenUsage
) -> session_pb2.UsageEntry:
    """Write a line of the ledger."""
    return session_pb2.UsageEntry(
        time=now(),
        model=model,
        turn_id=turn_id,
        conversation_id=conversation_id,
        session_id=session_id,
        usage=counted,
    )


def day_text(day: int) -> str:
    """Write a day as "2026-02-28"."""
    return (_EPOCH + timedelta(days=day)).isoformat()


def _day(field: str, text: str, default: int) -> int:
    if not text:
        return default
    try:
        if len(text) != len("2026-02-28"):
            raise ValueError(text)  # noqa: TRY301 - one exit
        return (date.fromisoformat(text) - _EPOCH).days
    except ValueError:
        raise InvalidArgumentError({field: 'must be a day like "2026-02-28"'}) from None


def _hash(method: str, request: ProtoMessage) -> bytes:
    return body_hash(f"/{_SERVICE}/{method}", request) if request.request_id else b""  # type: ignore[attr-defined]
