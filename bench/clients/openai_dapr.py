"""openai-agents' DaprSession: the history of a session as one JSON document in the same state store."""

import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

from bench.clients.client import WINDOW, Spec
from bench.texts import role, texts


class OpenAIDapr:
    """A session object for each caller: one object lets a single call through at a time."""

    def __init__(self, client: Any, spec: Spec) -> None:
        """`client` is the Dapr SDK's."""
        self._client = client
        self._spec = spec
        self._sessions: dict[str, Any] = {}
        self._touched: set[int] = set()
        self._text = texts(1)[0]

    def _session(self, name: str, caller: int) -> Any:
        from agents.extensions.memory import DaprSession

        key = f"{name}/{caller}"
        if key not in self._sessions:
            self._sessions[key] = DaprSession(name, state_store_name=self._spec.store, dapr_client=self._client)
        return self._sessions[key]

    async def prepare(self, history: int) -> None:
        """See Client."""
        for caller in range(min(self._spec.pools[str(history)], 32)):
            await self._write(history, caller)
        assert len(await self._session(_name(history, 0), 0).get_items(WINDOW)) == WINDOW

    async def _write(self, history: int, caller: int) -> None:
        session = self._session(_name(history, caller), caller)
        await session.clear_session()
        await session.add_items([{"role": role(index), "content": text} for index, text in enumerate(texts(history))])

    async def read(self, history: int, caller: int) -> None:
        """See Client."""
        await self._session(_name(history, 0), caller).get_items(WINDOW)

    async def append(self, history: int, caller: int) -> None:
        """See Client."""
        self._touched.add(caller)
        await self._session(_name(history, caller), caller).add_items([{"role": "user", "content": self._text}])

    async def reset(self, history: int) -> None:
        """See Client."""
        for caller in self._touched:
            await self._write(history, caller)
        self._touched.clear()


def _name(history: int, caller: int) -> str:
    return f"openai-{history}-{caller}"


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[OpenAIDapr]:
    """Connect."""
    # The SDK's constructor asks the sidecar's HTTP port for its health, for up to a minute.
    os.environ["DAPR_HTTP_PORT"] = spec.sidecar_http.rpartition(":")[2]
    os.environ["DAPR_RUNTIME_HOST"] = "127.0.0.1"
    from dapr.aio.clients import DaprClient

    async with DaprClient(address=spec.sidecar_grpc) as client:
        yield OpenAIDapr(client, spec)
