"""A caller who brings a trace, and that trace as Zipkin has it."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.conditions import eventually
from tests.mesh_fixture import Mesh

Span = dict[str, Any]


@dataclass(frozen=True)
class Trace:
    """A trace that a client begins, as W3C has it."""

    trace_id: str
    span_id: str

    @classmethod
    def begin(cls) -> "Trace":
        """Draw the ids."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @property
    def header(self) -> tuple[str, str]:
        """What the client sends along: that the trace is sampled is its word."""
        return "traceparent", f"00-{self.trace_id}-{self.span_id}-01"


class Zipkin:
    """What Zipkin knows."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def spans(self, trace_id: str) -> list[Span]:
        """A trace's spans; none while it knows none."""
        async with httpx.AsyncClient(base_url=self._address, trust_env=False) as client:
            answer = await client.get(f"/api/v2/trace/{trace_id}")
        return list(answer.json()) if answer.status_code == httpx.codes.OK else []

    async def until(
        self, trace: Trace, there: Callable[[list[Span]], bool], *, within: float = 60.0, what: str
    ) -> list[Span]:
        """Wait until a trace has what is looked for; gives its spans."""

        async def look() -> list[Span]:
            found = await self.spans(trace.trace_id)
            return found if there(found) else []

        return await eventually(look, within=within, what=what)


def services(spans: list[Span]) -> set[str]:
    """Names of the services and sidecars that have spans."""
    return {one["localEndpoint"]["serviceName"] for one in spans}


def names(spans: list[Span], service: str) -> set[str]:
    """What a service's spans are called."""
    return {one["name"] for one in spans if one["localEndpoint"]["serviceName"] == service}


def orphans(spans: list[Span], trace: Trace) -> list[Span]:
    """Spans whose parent nobody reported; the client's own span is known."""
    known = {one["id"] for one in spans} | {trace.span_id}
    return [one for one in spans if one.get("parentId", trace.span_id) not in known]


def metadata(mesh: Mesh, user: str, trace: Trace) -> tuple[tuple[str, str], ...]:
    """A user's token and a trace."""
    return (*mesh.metadata(user), trace.header)
