"""Where extensions lie, and how they change: each change one commit with the events that tell of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gaggle.common.v1 import error_reason_pb2
from gaggle.extension.state.v1 import document_pb2
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.extension import domain
from services.extension.domain import SHARED
from services.runtime.errors import ConflictError, FailedPreconditionError, NotFoundError
from services.runtime.events import Change, build_events
from services.runtime.keys import user_part
from services.runtime.locks import KeyedLocks
from services.runtime.outbox import Outbox
from services.runtime.requests import first_answer, new_row, row_key
from services.runtime.state import CommitFailedError, Item, Put, Remove, StateStore
from services.runtime.telemetry import current_trace
from services.runtime.users import Users

ENTITY = "extension"
ATTEMPTS = 12
_AT_ONCE = 25


def head_key(user_id: str, extension_id: str) -> str:
    """Key of an extension as a user has it."""
    return f"ext:{user_part(user_id)}:{extension_id}"


def index_key(user_id: str) -> str:
    """Key of the list of a user's extensions."""
    return f"exts:{user_part(user_id)}"


def post_key(user_id: str, extension_id: str) -> str:
    """Key of the signpost to a user's live connection."""
    return f"ext-post:{user_part(user_id)}:{extension_id}"


@dataclass(frozen=True, slots=True)
class View:
    """An extension as one user has it, as it was read."""

    user_id: str
    extension_id: str
    registration: document_pb2.Registration
    own: document_pb2.Head | None
    """What lies under the user; None: a shared one that the user has never loaded."""

    own_etag: str
    post: document_pb2.Post | None
    post_etag: str

    @property
    def owner(self) -> str:
        """Under whom the registration lies."""
        return SHARED if self.registration.shared else self.user_id

    @property
    def state(self) -> "domain.State.ValueType":
        """Whether the user has it loaded."""
        return domain.effective_state(self.registration, self.own)


@dataclass(slots=True)
class Draft:
    """A change in the making."""

    head: document_pb2.Head
    answer: bytes = b""
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Topic to payload; none: it is no revision."""

    operations: list[Put | Remove] = field(default_factory=list)
    clean_ups: list[runtime_pb2.CleanUp] = field(default_factory=list)
    ttl_seconds: int = 0


class ExtensionStore:
    """Reads and changes extensions."""

    def __init__(self, state: StateStore, outbox: Outbox) -> None:
        """Both are shared by the whole process."""
        self.state = state
        self.outbox = outbox
        self.users = Users(state)
        self.locks = KeyedLocks()

    # -- reading

    async def find(self, user_id: str, extension_id: str) -> View | None:
        """Read an extension that the user may use; None if there is none. Strong."""
        own_key, shared_key = head_key(user_id, extension_id), head_key(SHARED, extension_id)
        place = post_key(user_id, extension_id)
        found = await self.state.get_many(list(dict.fromkeys((own_key, shared_key, place))), confirm=[own_key])
        if own_key not in found and shared_key not in found and (item := await self.state.get(shared_key)):
            found[shared_key] = item
        return _view(user_id, extension_id, found)

    async def view(self, user_id: str, extension_id: str) -> View:
        """Read an extension that is there. Raises NotFoundError. Strong."""
        found = await self.find(user_id, extension_id)
        if found is None:
            raise NotFoundError(ENTITY, extension_id)
        return found

    async def named(self, user_id: str, name: str) -> str:
        """Give the id behind a name: the user's own before a shared one. Raises NotFoundError."""
        wanted = domain.key_of(name)
        keys = list(dict.fromkeys((index_key(user_id), index_key(SHARED))))
        found = await self.state.get_many(keys, confirm=keys)
        for key in keys:
            for entry in live_entries(read_index(found.get(key))):
                if entry.key == wanted:
                    return str(entry.extension_id)
        raise NotFoundError(ENTITY, name)

    async def views(self, user_id: str, extension_ids: Sequence[str]) -> list[View]:
        """Read several; those that are gone are left out."""
        views = []
        for start in range(0, len(extension_ids), _AT_ONCE):
            chunk = extension_ids[start : start + _AT_ONCE]
            keys = dict.fromkeys(
                key for one in chunk for key in (head_key(user_id, one), head_key(SHARED, one), post_key(user_id, one))
            )
            found = await self.state.get_many(list(keys), confirm=[head_key(user_id, one) for one in chunk])
            views += [view for one in chunk if (view := _view(user_id, one, found)) is not None]
        return views

    async def index(self, user_id: str) -> tuple[document_pb2.UserIndex, Item | None]:
        """Read the list of a user's extensions."""
        item = await self.state.get(index_key(user_id))
        return read_index(item), item

    async def head(self, user_id: str, extension_id: str) -> tuple[document_pb2.Head | None, str]:
        """Read what lies under a user, tombstones included, and its ETag."""
        item = await self.state.get(head_key(user_id, extension_id))
        return (document_pb2.Head.FromString(item.value), item.etag) if item else (None, "")

    async def heads(self, user_id: str, extension_ids: Sequence[str]) -> list[document_pb2.Head]:
        """Read what lies under a user, tombstones included; what has run out is left out."""
        keys = [head_key(user_id, one) for one in extension_ids]
        found = await self.state.get_many(keys, confirm=keys)
        return [document_pb2.Head.FromString(found[key].value) for key in keys if key in found]

    # -- changing

    async def add(
        self,
        user_id: str,
        owner: str,
        request_id: str,
        digest: bytes,
        plan: Callable[[document_pb2.UserIndex], Draft],
    ) -> bytes:
        """Commit a new extension under `owner`; give the answer, an earlier one if the request was seen before.

        `plan` enters it in the index that it is given. Raises FailedPreconditionError for an erased user,
        ConflictError, and what `plan` raises.
        """
        request_key = row_key(user_id, request_id) if request_id else ""
        async with self.locks.alone(index_key(owner)):
            for _ in range(ATTEMPTS):
                keys = [index_key(owner), *([request_key] if request_id else [])]
                found = await self.state.get_many(keys, confirm=keys)
                if (answer := first_answer(found.get(request_key), digest)) is not None:
                    return answer
                item = found.get(index_key(owner))
                index = read_index(item)
                check_open(index)
                draft = plan(index)
                draft.operations += [] if item else await self.users.entering(owner)
                draft.operations.append(index_put(owner, index, item))
                if request_id:
                    draft.operations.append(new_row(request_key, digest, draft.answer))
                try:
                    await self.save(owner, draft, "")
                except ConflictError:
                    continue
                return draft.answer
        raise ConflictError("other writers kept winning; try again")

    async def change(
        self,
        caller: str,
        user_id: str,
        extension_id: str,
        request_id: str,
        digest: bytes,
        apply: Callable[[View, Mapping[str, Item]], Draft | bytes],
        *,
        also: Sequence[str] = (),
    ) -> bytes:
        """Change what lies under `user_id`, once for each of the caller's request ids; give the answer.

        `apply` gets the extension, whose `own` it may change, and the documents of the keys in `also`. It gives a
        Draft, or an answer if there is nothing to do, and may be called several times. A user's first own part of a
        shared extension is entered in the user's index. Raises NotFoundError, ConflictError, and what `apply` raises.
        """
        request_key = row_key(caller, request_id) if request_id else ""
        own_key, shared_key = head_key(user_id, extension_id), head_key(SHARED, extension_id)
        place = post_key(user_id, extension_id)
        keys = list(dict.fromkeys((own_key, shared_key, place, *also, *([request_key] if request_id else []))))
        async with self.locks.alone(own_key):
            for _ in range(ATTEMPTS):
                found = await self.state.get_many(keys, confirm=[own_key, shared_key, *also])
                if (answer := first_answer(found.get(request_key), digest)) is not None:
                    return answer
                view = _view(user_id, extension_id, found)
                if view is None:
                    raise NotFoundError(ENTITY, extension_id)
                draft = apply(view, found)
                if isinstance(draft, bytes):
                    return draft
                if view.own is None:
                    draft.operations += await self._entering(user_id, extension_id)
                if request_id:
                    draft.operations.append(new_row(request_key, digest, draft.answer))
                try:
                    await self.save(user_id, draft, view.own_etag)
                except ConflictError:
                    continue
                return draft.answer
        raise ConflictError("other writers kept winning; try again")

    async def save(self, user_id: str, draft: Draft, etag: str) -> None:
        """Commit a draft over the head last read (`etag`), or as a new one (""). Raises ConflictError."""
        head = draft.head
        number = await self.outbox.reserve()
        if draft.events:
            head.revision += 1
            head.events.add(revision=head.revision, slot=number.slot, epoch=number.epoch, number=number.number)
            del head.events[: -domain.EVENT_REFERENCES]
        trace = current_trace.get()
        change = Change(
            entity_type=ENTITY,
            entity_id=head.extension_id,
            user_id=user_id,
            revision=head.revision,
            incarnation=head.incarnation,
            time=datetime.now(UTC),
            traceparent=trace.traceparent if trace else "",
        )
        row = runtime_pb2.OutboxRow(events=build_events(change, draft.events), clean_ups=draft.clean_ups)
        put = Put(
            head_key(user_id, head.extension_id),
            head.SerializeToString(),
            etag=etag,
            create=not etag,
            ttl_seconds=draft.ttl_seconds,
        )
        await self.outbox.commit_reserved(number, row, [*draft.operations, put])

    async def _entering(self, user_id: str, extension_id: str) -> list[Put]:
        """Plan to enter a shared extension in the index of a user who loads it."""
        index, item = await self.index(user_id)
        check_open(index)
        puts = [] if item else await self.users.entering(user_id)
        add_entry(index, extension_id, "", datetime.now(UTC))
        return [*puts, index_put(user_id, index, item)]

    # -- signposts

    async def claim_post(self, view: View, post: document_pb2.Post) -> bool:
        """Put up a signpost in the place of the one that was read; False if another was faster."""
        key = post_key(view.user_id, view.extension_id)
        put = Put(key, post.SerializeToString(), etag=view.post_etag, create=not view.post_etag)
        try:
            await self.state.commit([put])
        except CommitFailedError as failure:
            item = await self.state.get(key)
            if item is not None and document_pb2.Post.FromString(item.value) == post:
                return True  # It did happen.
            if item is None and failure.cause is not None:
                raise failure.cause from failure
            return False
        return True

    async def post(self, user_id: str, extension_id: str) -> tuple[document_pb2.Post | None, str]:
        """Read a signpost and its ETag."""
        item = await self.state.get(post_key(user_id, extension_id))
        return (document_pb2.Post.FromString(item.value), item.etag) if item else (None, "")

    async def remove_post(self, user_id: str, extension_id: str, process: str) -> None:
        """Take down a signpost that names this process; another's stays."""
        post, etag = await self.post(user_id, extension_id)
        if post is not None and post.process == process:
            try:
                await self.state.commit([Remove(post_key(user_id, extension_id), etag=etag)])
            except CommitFailedError:
                return  # Somebody has moved it, or it stands and says nothing that anyone relies on.


def read_index(item: Item | None) -> document_pb2.UserIndex:
    """Read an index document; an empty one if there is none."""
    return document_pb2.UserIndex.FromString(item.value) if item else document_pb2.UserIndex()


def index_put(user_id: str, index: document_pb2.UserIndex, item: Item | None) -> Put:
    """Make the write of an index."""
    return Put(index_key(user_id), index.SerializeToString(), etag=item.etag if item else "", create=item is None)


def live_entries(index: document_pb2.UserIndex) -> list[document_pb2.IndexEntry]:
    """Give the entries of what is not deleted, newest first."""
    return [one for one in reversed(index.entries) if not one.HasField("delete_time")]


def add_entry(index: document_pb2.UserIndex, extension_id: str, key: str, now: datetime) -> None:
    """Enter an extension, and drop what was deleted long ago."""
    limit = now.timestamp() - domain.TOMBSTONE_SECONDS
    kept = [one for one in index.entries if not one.HasField("delete_time") or one.delete_time.ToSeconds() > limit]
    # Somebody who registers and deletes all day long keeps the newest ones.
    gone = [one for one in kept if one.HasField("delete_time")][: -3 * domain.MAX_EXTENSIONS]
    dropped = {one.extension_id for one in gone}
    kept = [one for one in kept if one.extension_id not in dropped]
    del index.entries[:]
    index.entries.extend(kept)
    index.entries.add(extension_id=extension_id, key=key, create_time=domain.timestamp(now))


def check_open(index: document_pb2.UserIndex) -> None:
    """Raise FailedPreconditionError for an erased user."""
    if index.HasField("erase_time"):
        raise FailedPreconditionError("the user has been erased", reason=error_reason_pb2.ERROR_REASON_USER_ERASED)


def _view(user_id: str, extension_id: str, found: Mapping[str, Item]) -> View | None:
    own_item = found.get(head_key(user_id, extension_id))
    own = document_pb2.Head.FromString(own_item.value) if own_item else None
    if own is not None and own.HasField("delete_time"):
        return None
    registration = own.registration if own is not None and own.HasField("registration") else None
    if registration is None:
        shared_item = found.get(head_key(SHARED, extension_id))
        shared = document_pb2.Head.FromString(shared_item.value) if shared_item else None
        if shared is None or shared.HasField("delete_time"):
            return None
        registration = shared.registration
    post_item = found.get(post_key(user_id, extension_id))
    return View(
        user_id=user_id,
        extension_id=extension_id,
        registration=registration,
        own=own,
        own_etag=own_item.etag if own_item else "",
        post=document_pb2.Post.FromString(post_item.value) if post_item else None,
        post_etag=post_item.etag if post_item else "",
    )
