"""The WebSocket and the gRPC stream: what goes over the wire, and clients that do not read."""

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from services.runtime.errors import UnavailableError
from services.runtime.service import StartError
from tests.conditions import eventually
from tests.sync.serving import WITHIN, Served, serving

if TYPE_CHECKING:
    from gaggle.sync.v1 import sync_service_pb2

_LARGE = "x" * 60_000
_MANY = 400
"""So many large events fill every buffer on the way, and the mailbox."""


async def test_frames_are_the_contract(served: Served) -> None:
    """A socket tells where it stands, then events as they come, in proto3 JSON."""
    async with served.watching("ann") as client:
        await client.caught_up()
        position = served.log.add("ann", text="Füße ✓")
        event = await client.event()
        assert (client.position, event.entity_type, event.data["title"]) == (position, "task", "Füße ✓")


async def test_heartbeats() -> None:
    """A client hears within the time that was promised that the stream is alive."""
    async with serving(heartbeat_seconds=0.2) as served, served.watching("ann") as client:
        await client.caught_up()
        for _ in range(3):
            assert (await client.next()).WhichOneof("kind") == "heartbeat"


async def test_a_cut_socket_resumes(served: Served) -> None:
    """A client that resumes behind the last frame it got has every event once."""
    mine: list[str] = []
    seen: list[str] = []
    after = 0
    for _ in range(5):
        async with served.watching("ann", after=after) as client:
            for number in range(4):
                mine.append(f"{len(mine)}")
                served.log.add("ann", text=mine[-1])
                if number < 3:
                    seen.append(str((await client.event()).data["title"]))
            assert client.position is not None
            after = client.position
            # Cut, not closed.
            client.connection.transport.abort()
    async with served.watching("ann", after=after) as client:
        while len(seen) < len(mine):
            seen.append(str((await client.event()).data["title"]))
    assert seen == mine


async def test_both_ways_tell_the_same(served: Served) -> None:
    """A gRPC stream and a socket of one user get the same events at the same positions."""
    call = served.watch("ann", after_position=0)
    async with served.watching("ann", after=0) as client:
        wanted = [served.log.add("ann") for _ in range(5)]
        by_socket = []
        for _ in wanted:
            await client.event()
            by_socket.append(client.position)
        by_grpc = [await _event(call) for _ in wanted]
    call.cancel()
    assert by_socket == by_grpc == wanted


async def test_a_new_token_goes_on(served: Served) -> None:
    """A socket lives on with a new token of its user, and ends with its token otherwise."""
    async with served.socket() as renewing, served.socket() as ending:
        for client in (renewing, ending):
            await client.send(token=served.token("ann", ttl_seconds=2))
        await renewing.send(token=served.token("ann"))
        error, code = await ending.refusal()
        assert (error.code, error.reason, code) == ("UNAUTHENTICATED", "EXPIRED_TOKEN", 4401)
        await renewing.caught_up()
        served.log.add("ann", text="still here")
        assert (await renewing.event()).data["title"] == "still here"


@pytest.mark.parametrize("way", ["socket", "grpc"])
async def test_a_slow_client_hears_why_and_resumes(way: str) -> None:
    """A client that stops reading is dropped with SLOW_CONSUMER, and gets the rest once it resumes."""
    async with serving(pending_events=16) as served:
        if way == "socket":
            async with served.watching("ann", max_queue=1) as client:
                await client.caught_up()
                texts = await _flood(served)
                # Only now does it read on.
                seen: list[str] = []
                while True:
                    frame = await client.next()
                    if frame.WhichOneof("kind") == "error":
                        break
                    seen.append(str(frame.event.data["title"])[:4])
                assert (frame.error.code, frame.error.reason) == ("RESOURCE_EXHAUSTED", "SLOW_CONSUMER")
                assert frame.error.retry_after_seconds > 0
                after = client.position
                with contextlib.suppress(ConnectionClosed):
                    await client.connection.recv()
                assert (client.connection.close_code, client.connection.close_reason) == (4429, "SLOW_CONSUMER")
            async with served.watching("ann", after=after) as client:
                while len(seen) < len(texts):
                    seen.append(str((await client.event()).data["title"])[:4])
        else:
            seen = []
            call = served.watch("ann")
            first = await call.read()
            assert first.HasField("caught_up")
            texts = await _flood(served)
            after = first.position
            error: grpc.aio.AioRpcError | None = None
            while error is None:
                try:
                    response = await call.read()
                except grpc.aio.AioRpcError as one:
                    error = one
                else:
                    after = response.position
                    seen.append(str(response.event.data["title"])[:4])
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            call = served.watch("ann", after_position=after)
            while len(seen) < len(texts):
                response = await call.read()
                seen.append(str(response.event.data["title"])[:4])
            call.cancel()
        assert seen == texts


@pytest.mark.parametrize("way", ["socket", "grpc"])
async def test_a_client_that_never_reads_is_let_go(way: str) -> None:
    """A client that reads nothing at all costs no memory and no place for longer than its time."""
    async with serving(pending_events=16, send_timeout_seconds=0.5) as served:
        call: Any = None
        async with contextlib.AsyncExitStack() as held:
            if way == "socket":
                client = await held.enter_async_context(served.watching("ann", max_queue=1, close_timeout=0.1))
                await client.caught_up()
            else:
                call = served.watch("ann")
                assert (await call.read()).HasField("caught_up")
            await _flood(served)

            async def gone() -> bool:
                return served.hub.clients == 0

            await eventually(gone, within=WITHIN, what="the client let go")
        if call is not None:
            call.cancel()


async def test_leaving_tells_to_come_back(served: Served) -> None:
    """A process that stops tells its sockets that they may come back at once."""
    async with served.watching("ann") as client:
        await client.caught_up()
        served.hub.close(UnavailableError("this replica", retry_after_seconds=0.1))
        error, code = await client.refusal()
        assert (error.code, error.retry_after_seconds, code) == ("UNAVAILABLE", 0.1, 4503)


async def test_a_client_that_leaves_leaves_nothing(served: Served) -> None:
    """Places are given back however a client goes."""
    async with served.watching("ann") as client:
        await client.caught_up()
    call = served.watch("ann")
    await call.read()
    call.cancel()

    async def gone() -> bool:
        return served.hub.clients == 0

    await eventually(gone, within=WITHIN, what="both gone")


async def test_too_many_sockets() -> None:
    """A flood of sockets, silent or not, is refused before the handshake, with when to try again."""
    async with serving(max_clients=2) as served, served.socket(), served.socket():
        with pytest.raises(InvalidStatus) as caught:
            async with served.socket():
                pass
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"


async def _flood(served: Served) -> list[str]:
    """Have more happen than fits on the way to a client that does not read; gives the first letters of each text."""
    texts = []
    for number in range(_MANY):
        texts.append(f"{number:04}")
        served.log.add("ann", text=texts[-1] + _LARGE)
        await asyncio.sleep(0)

    async def dropped() -> bool:
        return all(one.overflowed for one in served.hub.of("ann"))

    await eventually(dropped, within=WITHIN, what="the client dropped")
    return texts


async def _event(call: Any) -> int:
    while True:
        response: sync_service_pb2.WatchResponse = await call.read()
        if response.HasField("event"):
            return int(response.position)


async def test_a_port_that_is_taken_is_said() -> None:
    """A process that can't have its port says so in one line, and does not start half."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
            async with serving(http_port=port):
                pass
