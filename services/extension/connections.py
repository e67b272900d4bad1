"""The live connections of one replica, and where the others find them.

A server may keep state in its process: what a call opens, the next one uses. So a user's extension has one live
connection in the whole mesh, at the replica that its signpost names (`ext-post:...`), and the other replicas pass
their calls on to that one. The post is no lock and has no lease. Whoever can't reach the holder, because it was killed,
hangs or was cut off, makes a connection of its own and moves the post; who finds that the post has moved closes its
own. For a few seconds there may be two servers, never for long, and no call waits for a clock. A holder that starts
anew has another process id and holds nothing of its past.
"""

import asyncio
import contextlib
import contextvars
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import structlog

from gaggle.extension.state.v1 import document_pb2
from gaggle.extension.v1 import event_pb2, extension_pb2
from services.extension import domain
from services.extension.connection import Connection
from services.extension.errors import ConnectionLostError, ExtensionUnavailableError
from services.extension.http import http_connection
from services.extension.process import Death, Launch, Reaper, Streams, child_process
from services.extension.settings import ExtensionSettings
from services.extension.store import Draft, ExtensionStore, View
from services.extension.targets import AddressPolicy, TargetBlockedError, find_command, is_acting
from services.runtime import topics
from services.runtime.errors import ConflictError, GaggleError, NotFoundError, TooManyRequestsError, UnavailableError
from services.runtime.state import Item

_BUSY_RETRY_SECONDS = 5.0

_log = structlog.get_logger()
Key = tuple[str, str]
T = TypeVar("T")


class MovedError(Exception):
    """The signpost names another replica by now: look again."""


@dataclass(slots=True)
class Live:
    """A connection and what it was made from."""

    key: Key
    connection: Connection
    version: int
    """Of the registration."""

    failures: int
    """Deaths in a row before it."""

    loading: bool
    """It is not yet noted that the extension is loaded."""

    acting: bool = False
    """It is one of the deployment's acting commands, which get a token with each call."""

    answered: bool = False
    used_at: float = field(default_factory=time.monotonic)


class Connections:
    """Makes, keeps and ends them."""

    def __init__(self, store: ExtensionStore, secrets: Any, settings: ExtensionSettings, process: str) -> None:
        """`secrets` gives the value of a secret's name; `process` names this process for as long as it lives."""
        self._store = store
        self._secrets = secrets
        self._settings = settings
        self._policy = AddressPolicy(settings.http_allowed_hosts)
        self._reaper = Reaper()
        self._live: dict[Key, Live] = {}
        self._opening: dict[Key, asyncio.Task[Live]] = {}
        self._restarts: dict[Key, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._stopping = False
        self.post = document_pb2.Post(holder=settings.app_id, address=settings.replica, process=process)

    async def start(self) -> None:
        """Start what ends child processes if this process is killed."""
        await self._reaper.start()

    async def stop(self) -> None:
        """End all connections."""
        self._stopping = True
        for task in (*self._restarts.values(), *self._opening.values()):
            task.cancel()
        await asyncio.gather(*(self.close(key) for key in list(self._live)), return_exceptions=True)
        await asyncio.gather(*self._work, return_exceptions=True)
        await self._reaper.stop()

    # -- using

    async def use(self, view: View) -> Live:
        """Give the connection of a loaded extension, made anew if need be.

        Raises ExtensionUnavailableError while its server is down (its death is told, and it is being restarted),
        TargetBlockedError, TooManyRequestsError, and MovedError.
        """
        key = (view.user_id, view.extension_id)
        live = self._live.get(key)
        if live is not None and live.connection.alive and live.version == view.registration.version:
            live.used_at = time.monotonic()
            return live
        self._refuse_early(view)
        try:
            return await self.open(view)
        except ConnectionLostError as error:
            await self._tell_death(view, str(error), view.own.connection.failures if view.own else 0)
            raise _unavailable(view, str(error), domain.RESTARTING, self._settings.restart_seconds) from error

    def _refuse_early(self, view: View) -> None:
        if view.state == domain.RESTARTING and view.own is not None:
            left = domain.seconds_until(view.own.connection.retry_time, datetime.now(UTC))
            if left > 0:
                raise _unavailable(view, view.own.connection.last_error, domain.RESTARTING, left)

    async def open(self, view: View) -> Live:
        """Connect, or join those who are at it.

        Raises ConnectionLostError if the server can't be had, and otherwise as `use` does.
        """
        key = (view.user_id, view.extension_id)
        task = self._opening.get(key)
        if task is None:
            task = self._opening[key] = _detached(self._open(key, view))
            task.add_done_callback(lambda _: self._opening.pop(key, None))
            task.add_done_callback(_retrieved)
        # Who gives up waiting does not end it for the others.
        return await asyncio.shield(task)

    async def _open(self, key: Key, view: View) -> Live:
        if (former := self._live.get(key)) is not None:
            if former.connection.alive and former.version == view.registration.version:
                return former
            await self.close(key, keep_post=True)
        await self._make_room(view.user_id)
        transport = await self._transport(view)
        if view.post != self.post and not await self._store.claim_post(view, self.post):
            raise MovedError
        connection = Connection(transport, max_calls=self._settings.max_calls_per_connection)
        failures = view.own.connection.failures if view.own else 0
        live = Live(
            key,
            connection,
            view.registration.version,
            failures,
            loading=view.state != domain.LOADED,
            acting=is_acting(view.registration.config, self._settings.acting_commands),
        )
        try:
            await connection.open(self._settings.start_timeout_seconds)
        except BaseException as error:
            self._later(self._store.remove_post(*key, self.post.process))
            if isinstance(error, ConnectionLostError):
                raise ConnectionLostError(_told(view, connection)) from error
            raise
        self._live[key] = live
        self._later(self._attend(view, live))
        _log.info("extension_connected", extension=view.extension_id, user=view.user_id, name=view.registration.key)
        return live

    async def _make_room(self, user_id: str) -> None:
        own = [one for one in self._live.values() if one.key[0] == user_id]
        for group, most in ((own, self._settings.max_connections_per_user), (list(self._live.values()), None)):
            limit = most or self._settings.max_connections
            if len(group) < limit:
                continue
            idle = sorted((one for one in group if not one.connection.calls), key=lambda one: one.used_at)
            if not idle:
                raise TooManyRequestsError(limit, retry_after_seconds=_BUSY_RETRY_SECONDS)
            await self.close(idle[0].key)

    async def _transport(self, view: View) -> Any:
        """Check what is to be run or connected to, and gather what it needs."""
        config = view.registration.config
        settings = self._settings
        if domain.type_of(config) == "stdio":
            stdio = config.stdio
            acting = is_acting(config, settings.acting_commands)
            allowed, path = settings.stdio_commands, settings.stdio_path
            if acting:
                allowed, path = settings.acting_commands, f"{Path(sys.executable).parent}{os.pathsep}{path}"
            try:
                program = find_command(stdio.cmd, stdio.args, allowed, path)
            except OSError as error:
                raise ConnectionLostError(str(error)) from error
            env = self._acting_environment(view) if acting else await self._environment(view)
            home = settings.stdio_home
            launch = Launch(program, tuple(stdio.args), env, settings.stdio_path, home=home, cwd=stdio.cwd)

            def child(death: Death) -> AbstractAsyncContextManager[Streams]:
                return child_process(launch, self._reaper, death, max_line_bytes=settings.max_line_bytes)

            return child
        http = config.streamable_http
        if http.HasField("socket"):
            raise TargetBlockedError(http.socket, "is a Unix socket, which is not connected to")
        self._policy.check_uri(http.uri)
        values = await self._environment(view)
        headers = {name: domain.substitute(value, values) for name, value in http.headers.items()}

        def connection(death: Death) -> AbstractAsyncContextManager[Streams]:
            return http_connection(
                http.uri,
                headers,
                self._policy,
                death,
                max_bytes=settings.max_line_bytes,
                read_seconds=settings.max_tool_timeout_seconds,
            )

        return connection

    def _acting_environment(self, view: View) -> Mapping[str, str]:
        """Tell an acting command the way into the mesh, and nothing that could lead it elsewhere."""
        declared, env_keys = domain.env_of(view.registration.config)
        if declared or env_keys or view.registration.config.stdio.cwd:
            raise TargetBlockedError(view.registration.config.stdio.cmd, "acts for users, and so takes no environment")
        settings = self._settings
        token = settings.dapr_api_token.get_secret_value()
        return {
            "GAGGLE_SIDECAR_ADDRESS": settings.sidecar_target,
            "GAGGLE_APP_ID_SUFFIX": settings.app_id_suffix,
            **({"DAPR_API_TOKEN": token} if token else {}),
        }

    async def _environment(self, view: View) -> Mapping[str, str]:
        declared, env_keys = domain.env_of(view.registration.config)
        values = dict(declared)
        for name in env_keys:
            if not view.registration.shared and name not in self._settings.user_secrets:
                raise TargetBlockedError(name, "is not among the secrets that users' own extensions may ask for")
            try:
                values[name] = await self._secrets(domain.secret_name(self._settings.secret_prefix, name))
            except UnavailableError as error:
                raise ConnectionLostError(f"needs the secret {name}, which can't be had") from error
        return values

    # -- ending

    async def close(self, key: Key, *, keep_post: bool = False) -> None:
        """End a connection, if there is one, and all that its server has started."""
        if (restart := self._restarts.pop(key, None)) is not None and restart is not asyncio.current_task():
            restart.cancel()
        live = self._live.pop(key, None)
        if live is not None:
            await live.connection.close()
        if not keep_post:
            with contextlib.suppress(GaggleError):
                await self._store.remove_post(*key, self.post.process)

    async def check_forever(self) -> None:
        """Close what is no longer wanted, at every interval; run in the background."""
        while True:
            await asyncio.sleep(self._settings.check_seconds)
            await self.check()

    async def check(self) -> None:
        """Close connections that were unloaded, changed, moved or long not used, here or at another replica."""
        by_user: dict[str, list[Live]] = {}
        for live in self._live.values():
            by_user.setdefault(live.key[0], []).append(live)
        for user_id, lives in by_user.items():
            await self._check(user_id, lives)

    async def recheck(self, user_id: str, extension_id: str) -> None:
        """The same for one extension, now."""
        if (live := self._live.get((user_id, extension_id))) is not None:
            await self._check(user_id, [live])

    async def _check(self, user_id: str, lives: Sequence[Live]) -> None:
        views = await self._store.views(user_id, [one.key[1] for one in lives])
        current = {one.extension_id: one for one in views}
        for live in lives:
            why = self._why_to_close(live, current.get(live.key[1]))
            if why and self._live.get(live.key) is live:
                _log.info("extension_closed", extension=live.key[1], user=user_id, why=why)
                await self.close(live.key)

    def _why_to_close(self, live: Live, view: View | None) -> str:
        if view is None or view.state == domain.UNLOADED:
            # One that is being loaded is not yet noted as loaded.
            return "" if view is not None and view.registration.enabled and live.loading else "unloaded"
        if view.registration.version != live.version:
            return "changed"
        if view.post is None or view.post.process != self.post.process:
            return "moved"
        if not live.connection.calls and time.monotonic() - live.used_at > self._settings.idle_seconds:
            return "idle"
        return ""

    # -- deaths

    async def _attend(self, view: View, live: Live) -> None:
        """Wait for a connection's end, and see to it if it was not ours."""
        await live.connection.ended.wait()
        if self._live.get(live.key) is not live or live.connection.closing or self._stopping:
            return
        del self._live[live.key]
        await live.connection.close()
        await self._tell_death(view, _told(view, live.connection), 0 if live.answered else live.failures)

    async def _tell_death(self, view: View, error: str, before: int) -> None:
        """Note and tell a death, and see to the restart."""
        key = (view.user_id, view.extension_id)
        settings = self._settings
        _log.warning("extension_died", extension=view.extension_id, user=view.user_id, failures=before + 1)

        def apply(current: View, _found: Mapping[str, Item]) -> Draft | bytes:
            if current.state not in (domain.LOADED, domain.RESTARTING) or current.own is None:
                return b""
            connection = current.own.connection
            domain.died(
                connection,
                error,
                datetime.now(UTC),
                failures=before + 1,
                first_pause=settings.restart_seconds,
                most=settings.max_failures,
            )
            told = event_pb2.ExtensionErrorEvent(error=connection.last_error, failures=connection.failures)
            if connection.HasField("retry_time"):
                told.retry_time.CopyFrom(connection.retry_time)
            payload = domain.payload(told, current.registration)
            return Draft(current.own, connection.SerializeToString(), {topics.EXTENSION_ERROR: payload})

        try:
            noted = await self._store.change(view.user_id, *key, "", b"", apply)
        except NotFoundError:
            return
        connection = extension_pb2.Connection.FromString(noted)
        if connection.state == domain.RESTARTING and key not in self._restarts and not self._stopping:
            pause = domain.seconds_until(connection.retry_time, datetime.now(UTC))
            self._restarts[key] = _detached(self._restart(key, pause))
            self._restarts[key].add_done_callback(_retrieved)
        elif connection.state == domain.FAILED:
            await self._store.remove_post(*key, self.post.process)

    async def _restart(self, key: Key, pause: float) -> None:
        """Start a server again after a pause; that it did not work is a death more."""
        task = asyncio.current_task()
        try:
            await asyncio.sleep(pause)
            view = await self._store.find(*key)
            if view is None or view.state != domain.RESTARTING:
                return
            if view.post is not None and view.post.process != self.post.process:
                return  # Another replica has taken it over.
            failures = view.own.connection.failures if view.own else 0
            try:
                live = await self.open(view)
            except ConnectionLostError as error:
                if self._restarts.get(key) is task:
                    del self._restarts[key]
                await self._tell_death(view, str(error), failures)
                return
            await self.note_loaded(view, live, failures=failures)
        except (MovedError, GaggleError) as error:
            # The next call finds the extension as it stands, and tries by itself.
            _log.warning("extension_not_restarted", extension=key[1], error=str(error))
        finally:
            if self._restarts.get(key) is task:
                del self._restarts[key]

    async def note_loaded(
        self,
        view: View,
        live: Live,
        *,
        failures: int = 0,
        request_id: str = "",
        digest: bytes = b"",
        answer: Callable[[extension_pb2.Connection, int], bytes] | None = None,
    ) -> bytes:
        """Commit that an extension is loaded, and tell it if it was not; gives `answer` made of the connection."""
        tools = await live.connection.tools()
        count = sum(domain.allows(view.registration.config, name) for name in tools)
        now = datetime.now(UTC)

        def apply(current: View, _found: Mapping[str, Item]) -> Draft | bytes:
            head = current.own or document_pb2.Head(extension_id=view.extension_id, incarnation=1)
            connection = head.connection
            draft = Draft(head)
            if current.state != domain.LOADED:
                domain.loaded(connection, live.connection.server, now, failures=failures)
                server = extension_pb2.ServerInfo()
                server.CopyFrom(live.connection.server)
                server.ClearField("instructions")
                told = event_pb2.ExtensionLoadedEvent(server=server, tool_count=count, failures=failures)
                draft.events[topics.EXTENSION_LOADED] = domain.payload(told, current.registration)
            if answer is not None:
                draft.answer = answer(connection, count)
            return draft if draft.events or request_id else draft.answer

        try:
            return await self._store.change(view.user_id, view.user_id, view.extension_id, request_id, digest, apply)
        finally:
            live.loading = False

    def _later(self, work: Any) -> None:
        task = _detached(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        task.add_done_callback(_logged)


def _detached(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start work that outlives the call which began it: that call's deadline has no say in it."""
    return asyncio.create_task(work, context=contextvars.Context())


def _unavailable(view: View, what: str, state: Any, retry_after_seconds: float | None) -> ExtensionUnavailableError:
    return ExtensionUnavailableError(
        view.registration.config.name,
        what or "is not connected",
        state=domain.STATE_NAMES[state],
        retry_after_seconds=retry_after_seconds,
    )


def _told(view: View, connection: Connection) -> str:
    """Say how a connection ended; what a shared extension's process wrote may hold what its users must not see."""
    text = connection.death.text or "has ended"
    words = "" if view.registration.shared else connection.death.last_words
    return f"{text}: {words}"[: domain.MAX_ERROR_CHARACTERS] if words else text


def _retrieved(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def _logged(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        if isinstance(error, GaggleError | ConflictError):
            _log.warning("extension_work_put_off", error=str(error))
        else:
            _log.error("extension_work_failed", exc_info=error)
