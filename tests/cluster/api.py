"""The Kubernetes API, as much of it as the node needs: JSON over HTTPS with a client certificate."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

Object = dict[str, Any]
_PAUSES_SECONDS = (0.1, 0.5, 2.0)
_MERGE = {"content-type": "application/merge-patch+json"}


@dataclass(frozen=True)
class Access:
    """Where the API server is, and who asks: files in PEM."""

    url: str
    authority: Path
    certificate: Path
    key: Path


class Api:
    """Calls raise httpx.HTTPStatusError with what the server said."""

    def __init__(self, access: Access) -> None:
        context = ssl.create_default_context(cafile=str(access.authority))
        context.load_cert_chain(access.certificate, access.key)
        self._client = httpx.AsyncClient(base_url=access.url, verify=context, timeout=30, trust_env=False)

    async def list(self, path: str) -> list[Object]:
        """The items of a collection."""
        items: list[Object] = (await self.get(path))["items"]
        return items

    async def get(self, path: str) -> Object:
        """One object."""
        return await self._ask("GET", path)

    async def find(self, path: str) -> Object | None:
        """One object, or None if there is none."""
        try:
            return await self.get(path)
        except httpx.HTTPStatusError as error:
            if error.response.status_code == httpx.codes.NOT_FOUND:
                return None
            raise

    async def post(self, path: str, body: Object) -> Object:
        """Creates an object."""
        return await self._ask("POST", path, json=body)

    async def merge(self, path: str, patch: Object) -> Object:
        """Patches an object (RFC 7386)."""
        return await self._ask("PATCH", path, json=patch, headers=_MERGE)

    async def delete(self, path: str, *, grace_seconds: int) -> None:
        """Deletes an object; one that is gone already is no error."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": grace_seconds}
        response = await self._client.request("DELETE", path, json=body)
        if response.status_code != httpx.codes.NOT_FOUND:
            _raise(response)

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.aclose()

    async def _ask(self, method: str, path: str, **more: Any) -> Object:
        # A busy machine loses a connection now and then. What may have been done is not done twice.
        for pause in () if method == "POST" else _PAUSES_SECONDS:
            with contextlib.suppress(httpx.TransportError):
                return await self._once(method, path, **more)
            await asyncio.sleep(pause)
        return await self._once(method, path, **more)

    async def _once(self, method: str, path: str, **more: Any) -> Object:
        response = await self._client.request(method, path, **more)
        _raise(response)
        answer: Object = response.json()
        return answer


def _raise(response: httpx.Response) -> None:
    if response.is_error:
        raise httpx.HTTPStatusError(response.text, request=response.request, response=response)
