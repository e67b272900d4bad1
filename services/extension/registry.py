"""Registers, changes, lists and deletes extensions. Nothing is run or connected to here."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import Message

from gaggle.common.v1 import error_reason_pb2
from gaggle.extension.state.v1 import document_pb2
from gaggle.extension.v1 import event_pb2, extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as api
from gaggle.runtime.state.v1 import document_pb2 as runtime_pb2
from services.extension import domain
from services.extension.domain import SHARED
from services.extension.store import (
    ATTEMPTS,
    ENTITY,
    Draft,
    ExtensionStore,
    View,
    add_entry,
    index_key,
    index_put,
    live_entries,
    read_index,
)
from services.runtime import paging, topics
from services.runtime.errors import (
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    TooLargeError,
)
from services.runtime.identity import Caller
from services.runtime.ids import new_id
from services.runtime.requests import body_hash
from services.runtime.state import Item

WITHDRAWN = "shared-extension-withdrawn"
"""Work of the outbox: a shared extension was deleted or disabled, so nobody has it loaded any more."""

_SERVICE = "gaggle.extension.v1.ExtensionService"
_DEFAULT_PAGE = 20
_MAX_PAGE = 100


def digest_of(method: str, request: Message) -> bytes:
    """Hash a request that brings an id."""
    return body_hash(f"/{_SERVICE}/{method}", request) if request.request_id else b""  # type: ignore[attr-defined]


class Registry:
    """What extensions there are."""

    def __init__(self, store: ExtensionStore) -> None:
        """`store` keeps them."""
        self._store = store

    # -- reading

    async def get(self, caller: Caller, extension_id: str) -> extension_pb2.Extension:
        """Describe an extension. Raises NotFoundError."""
        return described(caller, await self._store.view(caller.user_id, extension_id))

    async def list(self, caller: Caller, request: api.ListExtensionsRequest) -> api.ListExtensionsResponse:
        """List what the user may use and what passes the filters: own ones, then shared ones, newest first."""
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE, most=_MAX_PAGE)
        filters = api.ListExtensionsRequest()
        filters.CopyFrom(request)
        filters.ClearField("page_size")
        filters.ClearField("page_token")
        scope = ("ListExtensions", caller.user_id, filters.SerializeToString(deterministic=True).hex())
        cursor = paging.decode(request.page_token, *scope)
        prefix = domain.key_of(request.name_prefix)
        response = api.ListExtensionsResponse()
        for place, owner in enumerate((caller.user_id, SHARED)):
            index, _ = await self._store.index(owner)
            entries = [one for one in live_entries(index) if one.key and one.key.startswith(prefix)]
            if cursor and place == cursor["o"]:
                # Ids of version 7 sort by age, and entries stand in that order.
                entries = [one for one in entries if one.extension_id < str(cursor["i"])]
            elif cursor and place < int(cursor["o"]):
                continue
            views = await self._store.views(caller.user_id, [one.extension_id for one in entries])
            for view in views:
                if not _passes(view, request):
                    continue
                if len(response.extensions) == size:
                    last = response.extensions[-1]
                    response.next_page_token = paging.encode({"o": int(last.shared), "i": last.id}, *scope)
                    return response
                response.extensions.append(described(caller, view))
        return response

    # -- changing

    async def register(self, caller: Caller, request: api.RegisterExtensionRequest) -> api.RegisterExtensionResponse:
        """Keep an extension. Raises AlreadyExistsError, TooLargeError, PermissionDeniedError."""
        if request.shared and not caller.is_admin:
            raise PermissionDeniedError("a shared extension needs the role 'admin'", metadata={"role": "admin"})
        owner = SHARED if request.shared else caller.user_id
        now = datetime.now(UTC)
        head = document_pb2.Head(extension_id=new_id(), incarnation=1)
        registration = head.registration
        registration.config.CopyFrom(request.config)
        registration.key = domain.key_of(request.config.name)
        registration.enabled = request.enabled if request.HasField("enabled") else True
        registration.shared = request.shared
        registration.version = 1
        registration.create_time.CopyFrom(domain.timestamp(now))
        registration.update_time.CopyFrom(registration.create_time)
        head.connection.state = domain.UNLOADED
        # The answer holds no text: a repeated request brings it along.
        answer = extension_pb2.Extension(id=head.extension_id, create_time=registration.create_time)

        def plan(index: document_pb2.UserIndex) -> Draft:
            _check_free(index, registration.key, request.config.name, "")
            if len(live_entries(index)) >= domain.MAX_EXTENSIONS:
                raise TooLargeError(
                    "the number of extensions", size=domain.MAX_EXTENSIONS + 1, limit=domain.MAX_EXTENSIONS
                )
            add_entry(index, head.extension_id, registration.key, now)
            fresh = document_pb2.Head()
            fresh.CopyFrom(head)
            told = event_pb2.ExtensionRegisteredEvent()
            return Draft(
                fresh,
                answer.SerializeToString(),
                {topics.EXTENSION_REGISTERED: domain.payload(told, registration)},
            )

        digest = digest_of("RegisterExtension", request)
        first = extension_pb2.Extension.FromString(
            await self._store.add(caller.user_id, owner, request.request_id, digest, plan)
        )
        registration.create_time.CopyFrom(first.create_time)
        registration.update_time.CopyFrom(first.create_time)
        shown = domain.describe(registration, head, first.id, reveal=True)
        return api.RegisterExtensionResponse(extension=shown)

    async def update(self, caller: Caller, extension_id: str, request: api.UpdateExtensionRequest) -> bytes:
        """Change a registration; gives the serialized answer. Raises ConflictError, STALE_ETAG."""
        now = datetime.now(UTC)
        owner = await self._owner(caller, extension_id)

        def apply(view: View, found: Mapping[str, Item]) -> Draft | bytes:
            head = _registered(view)
            registration = head.registration
            _check_etag(registration, request.etag)
            draft = Draft(head)
            changed = []
            if request.HasField("config") and request.config != registration.config:
                changed.append("config")
                key = domain.key_of(request.config.name)
                if key != registration.key:
                    draft.operations.append(_renamed(owner, found, extension_id, key, request.config.name))
                registration.config.CopyFrom(request.config)
                registration.key = key
            if request.HasField("enabled") and request.enabled != registration.enabled:
                changed.append("enabled")
                registration.enabled = request.enabled
            if changed:
                registration.version += 1
                registration.update_time.CopyFrom(domain.timestamp(now))
                told = event_pb2.ExtensionUpdatedEvent(changed=changed)
                draft.events[topics.EXTENSION_UPDATED] = domain.payload(told, registration)
                if not registration.enabled:
                    unload(draft, registration, "disabled")
                    _withdraw(draft, registration)
            answer = api.UpdateExtensionResponse(
                extension_id=extension_id, etag=str(registration.version), update_time=registration.update_time
            )
            draft.answer = answer.SerializeToString()
            return draft if changed or request.request_id else draft.answer

        digest = digest_of("UpdateExtension", request)
        return await self._store.change(
            caller.user_id, owner, extension_id, request.request_id, digest, apply, also=[index_key(owner)]
        )

    async def delete(self, caller: Caller, request: api.DeleteExtensionRequest) -> None:
        """Take an extension away; one that is gone already is no error. Raises NotFoundError, ConflictError."""
        try:
            owner = await self._owner(caller, request.extension_id)
        except NotFoundError:
            head, _ = await self._store.head(caller.user_id, request.extension_id)
            if head is None and caller.is_admin:
                head, _ = await self._store.head(SHARED, request.extension_id)
            if head is not None and head.HasField("delete_time"):
                return
            raise
        digest = digest_of("DeleteExtension", request)
        await self.remove(
            caller.user_id, owner, request.extension_id, "deleted", request.etag, request.request_id, digest
        )

    async def remove(
        self,
        caller: str,
        owner: str,
        extension_id: str,
        cause: str,
        etag: str = "",
        request_id: str = "",
        digest: bytes = b"",
    ) -> None:
        """Leave a tombstone of what lies under `owner`, with its event."""
        now = datetime.now(UTC)

        def apply(view: View, found: Mapping[str, Item]) -> Draft | bytes:
            assert view.own is not None
            head, registration = view.own, view.registration
            _check_etag(registration, etag)
            draft = Draft(head, ttl_seconds=domain.TOMBSTONE_SECONDS)
            unload(draft, registration, cause)
            if head.HasField("registration"):
                told = event_pb2.ExtensionDeletedEvent(cause=cause)
                draft.events[topics.EXTENSION_DELETED] = domain.payload(told, registration)
                _withdraw(draft, registration)
            item = found.get(index_key(owner))
            index = read_index(item)
            for entry in index.entries:
                if entry.extension_id == extension_id:
                    entry.delete_time.CopyFrom(domain.timestamp(now))
            if item is not None:
                draft.operations.append(index_put(owner, index, item))
            bury(head, now)
            return draft

        await self._store.change(caller, owner, extension_id, request_id, digest, apply, also=[index_key(owner)])

    async def withdraw(self, argument: bytes) -> None:
        """Unload a shared extension for everyone, after it was deleted or disabled: work of the outbox."""
        work = document_pb2.Withdrawal.FromString(argument)

        def apply(head: document_pb2.Head) -> Draft | None:
            draft = Draft(head)
            unload(draft, work.registration, work.cause)
            return draft if draft.events else None

        async for user_id in self._store.users.all():
            await self.change_own(user_id, work.extension_id, apply)

    async def forget(self, user_id: str, extension_id: str) -> None:
        """Leave a tombstone of what a user had of a shared extension that is gone."""

        def apply(head: document_pb2.Head) -> Draft:
            bury(head, datetime.now(UTC))
            return Draft(head, ttl_seconds=domain.TOMBSTONE_SECONDS)

        await self.change_own(user_id, extension_id, apply)

    async def change_own(
        self, user_id: str, extension_id: str, apply: Callable[[document_pb2.Head], Draft | None]
    ) -> None:
        """Change what lies under a user, without its registration being there."""
        for _ in range(ATTEMPTS):
            head, etag = await self._store.head(user_id, extension_id)
            if head is None or head.HasField("delete_time") or user_id == SHARED:
                return
            draft = apply(head)
            if draft is None:
                return
            try:
                await self._store.save(user_id, draft, etag)
            except ConflictError:
                continue
            return
        raise ConflictError("other writers kept winning")

    async def _owner(self, caller: Caller, extension_id: str) -> str:
        """Tell under whom a registration lies that the caller may change.

        Raises NotFoundError, and PermissionDeniedError for a shared one if the caller is no admin.
        """
        view = await self._store.view(caller.user_id, extension_id)
        if view.registration.shared and not caller.is_admin:
            raise PermissionDeniedError("a shared extension needs the role 'admin'", metadata={"role": "admin"})
        return view.owner


def described(caller: Caller, view: View) -> extension_pb2.Extension:
    """Describe an extension to its caller."""
    return domain.describe(view.registration, view.own, view.extension_id, reveal=caller.is_admin)


def bury(head: document_pb2.Head, now: datetime) -> None:
    """Make a head a tombstone."""
    head.ClearField("registration")
    head.ClearField("connection")
    head.delete_time.CopyFrom(domain.timestamp(now))


def unload(draft: Draft, registration: document_pb2.Registration, cause: str) -> None:
    """Note in a change that the user no longer has it loaded, if that was so."""
    connection = draft.head.connection
    if connection.state in (domain.LOADED, domain.RESTARTING, domain.FAILED):
        connection.state = domain.UNLOADED
        for name in ("load_time", "failures", "retry_time"):
            connection.ClearField(name)
        told = event_pb2.ExtensionUnloadedEvent(cause=cause)
        draft.events[topics.EXTENSION_UNLOADED] = domain.payload(told, registration)


def _withdraw(draft: Draft, registration: document_pb2.Registration) -> None:
    """Leave the work of unloading a shared extension for everyone."""
    if not registration.shared:
        return
    work = document_pb2.Withdrawal(
        extension_id=draft.head.extension_id,
        registration=registration,
        cause="deleted" if topics.EXTENSION_DELETED in draft.events else "disabled",
    )
    domain.hide(work.registration.config, code=True)
    draft.clean_ups.append(runtime_pb2.CleanUp(kind=WITHDRAWN, argument=work.SerializeToString()))


def _registered(view: View) -> document_pb2.Head:
    if view.own is None or not view.own.HasField("registration"):
        raise NotFoundError(ENTITY, view.extension_id)
    return view.own


def _check_etag(registration: document_pb2.Registration, etag: str) -> None:
    if etag and etag != str(registration.version):
        raise _stale(etag, registration.version)


def _stale(etag: str, version: int) -> ConflictError:
    return ConflictError(
        "the extension has changed since it was read",
        reason=error_reason_pb2.ERROR_REASON_STALE_ETAG,
        metadata={"etag": etag, "current": str(version)},
    )


def _check_free(index: document_pb2.UserIndex, key: str, name: str, but: str) -> None:
    if any(one.key == key and one.extension_id != but for one in live_entries(index)):
        raise AlreadyExistsError(ENTITY, name)


def _renamed(owner: str, found: Mapping[str, Item], extension_id: str, key: str, name: str) -> Any:
    item = found.get(index_key(owner))
    index = read_index(item)
    _check_free(index, key, name, extension_id)
    for entry in index.entries:
        if entry.extension_id == extension_id:
            entry.key = key
    return index_put(owner, index, item)


def _passes(view: View, request: api.ListExtensionsRequest) -> bool:
    kind = domain.TYPES.get(request.type)
    if kind is not None and domain.type_of(view.registration.config) != kind:
        return False
    if request.HasField("enabled") and view.registration.enabled != request.enabled:
        return False
    return not request.HasField("loaded") or request.loaded == (view.state in (domain.LOADED, domain.RESTARTING))
