"""Tool calls: time, size, cancellation, repetition."""

import asyncio
import json
import uuid
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.extension.asking import Asker, odd
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

_SOON = 15.0


@pytest.fixture(scope="module")
def user() -> str:
    """One user for all tests of this module, so that one server serves them."""
    return f"user-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def call_id() -> str:
    """A call's id of the test's own."""
    return uuid.uuid4().hex


@pytest.fixture
async def extension_id(asker: Asker) -> str:
    """The server of our own, loaded."""
    found = (await asker("ListExtensions", loaded=True, name_prefix="odd")).extensions
    return str(found[0].id) if found else await asker.loaded(odd())


async def _pid(asker: Asker, extension_id: str) -> int:
    return int(json.loads(await asker.text("whoami", extension_id=extension_id))["pid"])


async def _says(mark: Path, word: str) -> None:
    async def said() -> bool:
        return await asyncio.to_thread(_read, mark) == word

    await eventually(said, within=_SOON, what=f"the tool says {word}")


def _read(mark: Path) -> str:
    return mark.read_text() if mark.exists() else ""


async def test_progress_is_passed_on(asker: Asker, extension_id: str, tmp_path: Path) -> None:
    """The stream begins with `started`, has the progress as it is made, and ends with the result."""
    slow = {"seconds": 0.3, "mark": str(tmp_path / "mark")}
    seen = [one async for one in asker.responses("slow", slow, extension_id=extension_id)]
    assert seen[0].started.extension_id == extension_id
    assert seen[0].started.timeout.seconds == 300
    steps = [one.progress for one in seen[1:-1]]
    assert len(steps) > 2
    assert [one.progress for one in steps] == sorted(one.progress for one in steps)
    assert {(one.total, one.message) for one in steps} == {(0.3, "sleeping")}
    assert seen[-1].result.content[0].text.text == "slept"


async def test_time_is_limited(asker: Asker, extension_id: str, tmp_path: Path) -> None:
    """A call that is out of time is DEADLINE_EXCEEDED, and the server is told to stop."""
    mark = tmp_path / "mark"
    slow = {"seconds": 60, "mark": str(mark)}
    pid = await _pid(asker, extension_id)
    refusal = await refused(asker.call("slow", slow, extension_id=extension_id, timeout=Duration(nanos=300_000_000)))
    assert (refusal.code, refusal.reason) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED")
    await _says(mark, "cancelled")
    assert await _pid(asker, extension_id) == pid


async def test_the_extensions_own_limit(asker: Asker, tmp_path: Path) -> None:
    """Where the call names no time, the extension's own counts."""
    extension_id = await asker.loaded(odd("brief", timeout=Duration(nanos=200_000_000)))
    slow = {"seconds": 60, "mark": str(tmp_path / "mark")}
    assert (await refused(asker.call("slow", slow, extension_id=extension_id))).code == "DEADLINE_EXCEEDED"


async def test_size_is_limited(asker: Asker, extension_id: str) -> None:
    """A result over the limit is RESOURCE_EXHAUSTED with the limit; one below it comes whole."""
    pid = await _pid(asker, extension_id)
    assert len(await asker.text("flood", {"size": 300_000}, extension_id=extension_id)) == 300_000
    refusal = await refused(asker.call("flood", {"size": 900_000}, extension_id=extension_id))
    assert (refusal.code, refusal.reason, refusal.facts["limit"]) == ("RESOURCE_EXHAUSTED", "TOO_LARGE", "786432")
    assert await _pid(asker, extension_id) == pid


async def test_a_caller_that_leaves_cancels(asker: Asker, extension_id: str, tmp_path: Path) -> None:
    """A call without an id ends with its caller, and the server is told."""
    mark = tmp_path / "mark"
    stream = asker.stream("slow", {"seconds": 60, "mark": str(mark)}, extension_id=extension_id)
    async for response in stream:
        if response.HasField("progress"):
            break
    stream.cancel()
    await _says(mark, "cancelled")


async def test_a_call_is_cancelled_by_its_id(
    asker: Asker, stranger: Asker, extension_id: str, call_id: str, tmp_path: Path
) -> None:
    """CancelToolCall ends a call for everyone who waits; another user's is not reached; a repetition stays ended."""
    mark = tmp_path / "mark"
    slow = {"seconds": 60, "mark": str(mark)}
    stream = asker.stream("slow", slow, extension_id=extension_id, call_id=call_id)
    async for response in stream:
        if response.HasField("progress"):
            break
    own = await stranger.loaded(odd())
    assert not (await stranger("CancelToolCall", extension_id=own, call_id=call_id)).cancelled
    assert (await asker("CancelToolCall", extension_id=extension_id, call_id=call_id)).cancelled

    async def rest() -> None:
        async for _ in stream:
            pass

    refusal = await refused(rest())
    assert (refusal.code, refusal.reason, refusal.facts) == ("ABORTED", "CALL_CANCELLED", {"call_id": call_id})
    await _says(mark, "cancelled")
    assert not (await asker("CancelToolCall", extension_id=extension_id, call_id=call_id)).cancelled
    again = await refused(asker.call("slow", slow, extension_id=extension_id, call_id=call_id))
    assert again.reason == "CALL_CANCELLED"


async def test_a_repeated_call_runs_once(asker: Asker, extension_id: str, call_id: str, tmp_path: Path) -> None:
    """The same call_id gives the first result, at once and later; another body is refused; without, it runs again."""
    file = tmp_path / "file"
    line = {"path": str(file), "text": "x"}
    first, second = await asyncio.gather(
        *(asker.call("append", line, extension_id=extension_id, call_id=call_id) for _ in range(2))
    )
    assert first == second
    assert await asker.call("append", line, extension_id=extension_id, call_id=call_id) == first
    assert file.read_text() == "x\n"
    reused = await refused(asker.call("append", {**line, "text": "y"}, extension_id=extension_id, call_id=call_id))
    assert (reused.code, reused.reason, reused.fields) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED", ("call_id",))
    await asker.call("append", line, extension_id=extension_id)
    assert file.read_text() == "x\nx\n"
    told = json.loads(await asker.text("call_id", extension_id=extension_id, call_id=f"{call_id}.mine"))
    assert told["gaggle/call-id"] == f"{call_id}.mine"


async def test_a_broken_stream_is_joined_again(asker: Asker, extension_id: str, call_id: str, tmp_path: Path) -> None:
    """A caller whose stream broke finds its call still running under its id, and it has run once."""
    mark = tmp_path / "mark"
    slow = {"seconds": 1.5, "mark": str(mark)}
    stream = asker.stream("slow", slow, extension_id=extension_id, call_id=call_id)
    async for response in stream:
        if response.HasField("progress"):
            break
    stream.cancel()
    seen = [one async for one in asker.responses("slow", slow, extension_id=extension_id, call_id=call_id)]
    assert seen[0].HasField("started")
    assert seen[-1].result.content[0].text.text == "slept"
    assert mark.read_text() == "finished"


async def test_a_tools_own_error_is_a_result(asker: Asker, extension_id: str) -> None:
    """What the tool reports as its error is a result with `is_error`, and the server lives on."""
    outcome = await asker.call("fail", {"why": "because"}, extension_id=extension_id)
    assert outcome.result.is_error
    assert "because" in outcome.result.content[0].text.text


@pytest.mark.parametrize(
    ("tool", "arguments", "field"),
    [
        pytest.param("append", {"path": "/x"}, "arguments_json", id="one is missing"),
        pytest.param("append", {"path": "/x", "text": 3}, "arguments_json.text", id="of another type"),
    ],
)
async def test_arguments_are_checked(asker: Asker, extension_id: str, tool: str, arguments: Any, field: str) -> None:
    """Arguments that the tool's schema refuses are INVALID_ARGUMENT, and the place is named."""
    refusal = await refused(asker.call(tool, arguments, extension_id=extension_id))
    assert (refusal.code, refusal.reason, refusal.fields) == ("INVALID_ARGUMENT", "INVALID_FIELD", (field,))


@pytest.mark.parametrize("text", ["{", "[]", '"x"', '{"size": NaN}', "[" * 100_000])
async def test_arguments_that_are_no_object(asker: Asker, extension_id: str, text: str) -> None:
    """Arguments must be one JSON object."""
    refusal = await refused(asker.call("flood", arguments_json=text, extension_id=extension_id))
    assert refusal.fields == ("arguments_json",)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"call_id": "a b"}, "call_id", id="no id"),
        pytest.param({"timeout": Duration(seconds=-1)}, "timeout", id="a negative time"),
        pytest.param({"extension_id": ""}, "extension_id", id="no extension"),
    ],
)
async def test_a_call_must_be_well_formed(asker: Asker, fields: dict[str, Any], named: str) -> None:
    """What is wrong with a call is named."""
    refusal = await refused(asker.call("count", **({"extension_id": "x"} | fields)))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", (named,))
    assert (await refused(asker.call("", extension_id="x"))).fields == ("tool_name",)


async def test_a_tool_that_is_not_there(asker: Asker, extension_id: str) -> None:
    """A name that the server does not list is NOT_FOUND, and the server is not asked."""
    refusal = await refused(asker.call("nope", extension_id=extension_id))
    assert (refusal.code, refusal.facts) == ("NOT_FOUND", {"type": "tool", "id": "nope"})


async def test_tools_page(asker: Asker, extension_id: str) -> None:
    """ListTools gives pages in the server's order."""
    found: list[str] = []
    token = ""
    while True:
        page = await asker("ListTools", extension_id=extension_id, page_size=4, page_token=token)
        found += [one.name for one in page.tools]
        token = page.next_page_token
        if not token:
            break
    whole = await asker("ListTools", extension_id=extension_id)
    assert found == [one.name for one in whole.tools]
    assert len(found) > 8


async def test_many_calls_at_once(asker: Asker, extension_id: str) -> None:
    """Calls on one connection do not mix: each has its own answer."""
    answers = await asyncio.gather(
        *(asker.text("flood", {"size": size}, extension_id=extension_id) for size in range(40))
    )
    assert [len(one) for one in answers] == list(range(40))


async def test_a_call_needs_a_token(mesh: Mesh, extension_id: str) -> None:
    """Without a token a call is UNAUTHENTICATED."""
    async with mesh.channel("extension") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await Asker(channel, ()).call("count", extension_id=extension_id)
    assert raised.value.code() == grpc.StatusCode.UNAUTHENTICATED
