"""MCP over streamable HTTP, to addresses that were checked.

The host is resolved here, at every request and so at every redirect too (the SDK follows those that stay within the
origin, no others); the connection then goes to the very address that was checked, while TLS and the Host header keep
the name. Proxies and credentials of this process's own environment are not used.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import httpx2
from mcp.client.streamable_http import streamable_http_client

from services.extension.process import Death, Streams
from services.extension.targets import AddressPolicy, TargetBlockedError

_CONNECT_SECONDS = 10.0
_DEFAULT_PORTS = {"http": 80, "https": 443}
_EVENT_STREAM = "text/event-stream"


class CheckedTransport(httpx2.AsyncBaseTransport):
    """Sends requests to addresses that the policy lets pass, and bounds what comes back."""

    def __init__(self, policy: AddressPolicy, death: Death, *, max_body_bytes: int) -> None:
        """`death` hears of a target that was blocked; `max_body_bytes` bounds answers that are no event streams."""
        self._policy = policy
        self._death = death
        self._max_body = max_body_bytes
        self._inner = httpx2.AsyncHTTPTransport(retries=0)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Resolve, check, send."""
        url = request.url
        try:
            self._policy.check_uri(str(url))
            address = await self._policy.resolve(url.host, url.port or _DEFAULT_PORTS[url.scheme])
        except TargetBlockedError as error:
            self._death.blocked = error
            raise httpx2.ConnectError(error.message, request=request) from error
        except OSError as error:
            raise httpx2.ConnectError(f"{url.host} can't be resolved", request=request) from error
        pinned = httpx2.Request(
            request.method,
            url.copy_with(host=address),
            headers=request.headers,
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": url.host},
        )
        response = await self._inner.handle_async_request(pinned)
        if response.headers.get("content-encoding", "identity") != "identity":
            await response.aclose()
            raise httpx2.RemoteProtocolError("the answer is compressed, which was not asked for", request=request)
        if not response.headers.get("content-type", "").lower().startswith(_EVENT_STREAM):
            assert isinstance(response.stream, httpx2.AsyncByteStream)
            response.stream = _Bounded(response.stream, self._max_body)
        return response

    async def aclose(self) -> None:
        """Close all connections."""
        await self._inner.aclose()


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, inner: httpx2.AsyncByteStream, most: int) -> None:
        self._inner = inner
        self._most = most

    async def __aiter__(self) -> AsyncIterator[bytes]:
        seen = 0
        async for chunk in self._inner:
            seen += len(chunk)
            if seen > self._most:
                raise httpx2.RemoteProtocolError(f"the answer is larger than {self._most} bytes")
            yield chunk

    async def aclose(self) -> None:
        await self._inner.aclose()


@asynccontextmanager
async def http_connection(
    uri: str, headers: Mapping[str, str], policy: AddressPolicy, death: Death, *, max_bytes: int, read_seconds: float
) -> AsyncIterator[Streams]:
    """Talk to a server. A transport of the mcp package.

    `max_bytes` bounds one message, `read_seconds` the silence of a stream that is being read.
    """
    transport = CheckedTransport(policy, death, max_body_bytes=max_bytes)
    timeout = httpx2.Timeout(_CONNECT_SECONDS, read=read_seconds)
    own = {"accept-encoding": "identity"}
    async with (
        httpx2.AsyncClient(transport=transport, timeout=timeout, headers={**headers, **own}, trust_env=False) as client,
        streamable_http_client(uri, http_client=client, max_sse_event_size=max_bytes) as streams,
    ):
        yield streams
