"""Dapr's HTTP API with httpx and one JSON list a conversation: what a service writes that has no library at hand."""

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx

from bench.clients.client import WINDOW, Spec
from bench.texts import role, texts


class DaprHttp:
    """The whole history under one key; an append reads it, adds to it and writes it back with its ETag."""

    def __init__(self, client: httpx.AsyncClient, spec: Spec) -> None:
        """`client` has the state API as its base."""
        self._client = client
        self._spec = spec
        self._touched: set[int] = set()
        self._text = texts(1)[0]

    async def prepare(self, history: int) -> None:
        """See Client."""
        for caller in range(min(self._spec.pools[str(history)], 32)):
            await self._write(history, caller)
        assert len(await self._messages(history)) == WINDOW

    async def _write(self, history: int, caller: int) -> None:
        messages = [{"role": role(index), "content": text} for index, text in enumerate(texts(history))]
        await self._save({"key": _key(history, caller), "value": messages})

    async def _save(self, item: dict[str, Any]) -> None:
        body = json.dumps([item], separators=(",", ":"))
        (await self._client.post("", content=body, headers={"content-type": "application/json"})).raise_for_status()

    async def _messages(self, history: int) -> list[dict[str, str]]:
        response = (await self._client.get(f"/{_key(history, 0)}")).raise_for_status()
        messages: list[dict[str, str]] = response.json()
        return messages[-WINDOW:]

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        await self._messages(history)

    async def append(self, history: int, caller: int) -> None:
        """See Client."""
        self._touched.add(caller)
        key = _key(history, caller)
        response = (await self._client.get(f"/{key}")).raise_for_status()
        messages = response.json()
        messages.append({"role": "user", "content": self._text})
        await self._save(
            {
                "key": key,
                "value": messages,
                "etag": response.headers["etag"],
                "options": {"concurrency": "first-write", "consistency": "strong"},
            }
        )

    async def reset(self, history: int) -> None:
        """See Client."""
        for caller in self._touched:
            await self._write(history, caller)
        self._touched.clear()


def _key(history: int, caller: int) -> str:
    return f"http-{history}-{caller}"


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[DaprHttp]:
    """Connect."""
    base = f"http://{spec.sidecar_http}/v1.0/state/{spec.store}"
    async with httpx.AsyncClient(base_url=base, timeout=30) as client:
        yield DaprHttp(client, spec)
