"""The parts that need no mesh: keys, schemas, results, the ledger of calls."""

import asyncio
import base64
import json
import time
from typing import Any

import mcp_types as types
import pytest

from gaggle.extension.v1 import extension_service_pb2 as api
from services.extension import domain, results
from services.extension.calls import CallLedger, Tell
from services.extension.schema import Checker, UnusableSchemaError
from services.extension.settings import ExtensionSettings
from services.runtime.errors import InvalidArgumentError, TooLargeError, UnavailableError

# -- keys and pauses


@pytest.mark.parametrize(
    ("name", "key"),
    [("Time", "time"), ("My Tool", "mytool"), ("a-b_C.d/e", "a-b_c_d_e"), ("Ünïcode 2", "_n_code2"), (" \t", "")],
)
def test_keys_are_as_goose_makes_them(name: str, key: str) -> None:
    """White space goes, letters are lowered, what is no [a-z0-9_-] becomes an underscore."""
    assert domain.key_of(name) == key


def test_pauses_double_up_to_a_minute() -> None:
    """A server is tried after 1, 2, 4, ... seconds, and never later than a minute."""
    assert [domain.pause_seconds(1.0, failures) for failures in (1, 2, 3, 6, 7, 100)] == [1, 2, 4, 32, 60, 60]


def test_references_in_headers() -> None:
    """${NAME} and $NAME are replaced, what is not declared stays, and a value is not looked through again."""
    values = {"A": "1", "AB": "$A"}
    assert domain.substitute("$A ${A}x $AB $C ${C} $", values) == "1 1x $A $C ${C} $"


def test_the_list_of_commands_is_read() -> None:
    """Entries are separated by semicolons and quoted as a shell would have it; nothing is a pattern."""
    settings = ExtensionSettings.model_validate(
        {
            "APP_ID": "extension",
            "APP_PORT": 1,
            "DAPR_GRPC_PORT": 1,
            "APP_API_TOKEN": "t",
            "stdio_commands": "uvx mcp-server-time; '/a b/run' x ;;",
            "http_allowed_hosts": "inside, other:8080",
        }
    )
    assert settings.stdio_commands == (("uvx", "mcp-server-time"), ("/a b/run", "x"))
    assert settings.http_allowed_hosts == ("inside", "other:8080")
    assert domain.secret_name(settings.secret_prefix, "GITHUB_TOKEN") == "extension-github-token"


# -- schemas


def _checker(schema: Any) -> Checker:
    return Checker(schema, len(json.dumps(schema)))


def test_a_violation_names_its_place() -> None:
    """What is wrong is told with the path to it."""
    checker = _checker({"properties": {"a": {"items": {"type": "string"}}}, "required": ["a"]})
    assert checker.violation({"a": ["x"]}) is None
    assert checker.violation({"a": ["x", 1]}) == (".a[1]", "1 is not of type 'string'")
    assert checker.violation({}) == ("", "'a' is a required property")


def test_patterns_are_left_to_the_server() -> None:
    """An expression that would run for years is not run; a property of that name is checked like any other."""
    schema = {
        "properties": {"pattern": {"type": "integer"}, "text": {"type": "string", "pattern": "^(a+)+$"}},
        "patternProperties": {"^(b+)+$": {"type": "string"}},
        "additionalProperties": False,
    }
    checker = _checker(schema)
    started = time.monotonic()
    assert checker.violation({"text": "a" * 60 + "!", "b" * 60 + "!": 1}) is None
    assert time.monotonic() - started < 1
    assert checker.violation({"pattern": "x"}) == (".pattern", "'x' is not of type 'integer'")


@pytest.mark.parametrize(
    "schema",
    [
        pytest.param(
            {
                "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(40)} | {"d40": {}},
                "$ref": "#/$defs/d0",
            },
            id="doubling references",
        ),
        pytest.param({"$ref": "#"}, id="a reference to itself"),
        pytest.param({"$ref": "https://example.com/schema"}, id="a reference to elsewhere"),
    ],
)
def test_references_are_bounded(schema: dict[str, Any]) -> None:
    """A schema whose references ask for endless work, or for somebody else's document, is given up on, quickly."""
    started = time.monotonic()
    with pytest.raises(UnusableSchemaError):
        _checker(schema).violation({})
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("schema", ["text", {"type": "nothing"}, {"properties": 3}])
def test_what_is_no_schema(schema: Any) -> None:
    """What is no schema is told so, and raises nothing else."""
    with pytest.raises(UnusableSchemaError):
        _checker(schema)


def test_a_schema_has_a_size() -> None:
    """A schema over the limit is not used."""
    with pytest.raises(UnusableSchemaError):
        Checker({}, 1024 * 1024)


# -- results


def test_a_result_is_kept_without_loss() -> None:
    """Text and images have places of their own; what else there is stays as it came."""
    image = base64.b64encode(b"\x89PNG").decode()
    body = {
        "content": [
            {"type": "text", "text": "a\u00e9", "annotations": {"priority": 1}, "_meta": {"k": 1}},
            {"type": "image", "data": image, "mimeType": "image/png"},
            {"type": "audio", "data": image, "mimeType": "audio/wav"},
            {"type": "resource", "resource": {"uri": "file:///x", "text": "t"}},
            {"type": "resource_link", "uri": "file:///y", "name": "y"},
        ],
        "structuredContent": {"a": [1, None]},
        "isError": True,
        "_meta": {"m": 2},
    }
    shown = results.result_message(types.CallToolResult.model_validate(body))
    kinds = [one.WhichOneof("kind") for one in shown.content]
    assert kinds == ["text", "image", "raw", "raw", "raw"]
    assert json.loads(shown.content[0].text.annotations_json)["priority"] == 1
    assert json.loads(shown.content[0].text.meta_json) == {"k": 1}
    assert shown.content[1].image.data == b"\x89PNG"
    assert [json.loads(one.raw.json)["type"] for one in shown.content[2:]] == ["audio", "resource", "resource_link"]
    assert json.loads(shown.structured_content_json) == {"a": [1, None]}
    assert shown.is_error
    assert json.loads(shown.extra_json) == {"_meta": {"m": 2}}


def test_halves_of_surrogates_do_not_break_it() -> None:
    """Text that is no Unicode becomes some that is."""
    assert results.clean("a\ud800b") == "a\ufffdb"


# -- the ledger


def _ledger(**over: Any) -> CallLedger:
    return CallLedger(**({"grace_seconds": 0.05, "answer_seconds": 60.0, "answers_bytes": 1000} | over))


def _outcome(message: str) -> api.CallToolResponse:
    return api.CallToolResponse(error=api.CallError(message=message))


async def _all(ledger: CallLedger, work: Any, *, call_id: str = "c", digest: bytes = b"d") -> list[str]:
    return [one.error.message or "..." async for one in ledger.run("u", call_id, digest, work)]


class _Work:
    def __init__(self, *, wait: bool = False, error: Exception | None = None, size: int = 1) -> None:
        self.runs = 0
        self.cancelled = 0
        self.go = asyncio.Event()
        if not wait:
            self.go.set()
        self._error = error
        self._size = size

    async def __call__(self, tell: Tell) -> api.CallToolResponse:
        self.runs += 1
        tell(api.CallToolResponse(started=api.CallStarted()))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self._error is not None:
            raise self._error
        return _outcome("x" * self._size)


async def test_callers_of_one_id_share_a_run() -> None:
    """Two at once and one later are given one run's answer; another body is refused."""
    ledger, work = _ledger(), _Work(wait=True)
    two = [asyncio.create_task(_all(ledger, work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.go.set()
    assert [await one for one in two] == [["...", "x"], ["...", "x"]]
    assert await _all(ledger, work) == ["...", "x"]
    assert work.runs == 1
    with pytest.raises(InvalidArgumentError):
        await _all(ledger, work, digest=b"e")


async def test_a_call_outlives_its_caller_for_a_while() -> None:
    """Nobody listens: it goes on for the grace, then it is cancelled, and the next one runs anew."""
    ledger, work = _ledger(), _Work(wait=True)
    caller = asyncio.create_task(_all(ledger, work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert work.cancelled == 0
    async with asyncio.timeout(5):
        while not work.cancelled:  # noqa: ASYNC110 - bounded by the line above
            await asyncio.sleep(0.01)
    work.go.set()
    assert await _all(ledger, work) == ["...", "x"]
    assert work.runs == 2


@pytest.mark.parametrize(
    ("error", "runs"),
    [
        pytest.param(UnavailableError("it"), 2, id="it died"),
        pytest.param(TooLargeError("it", size=2, limit=1), 1, id="it answered too much"),
    ],
)
async def test_only_what_was_decided_is_kept(error: Exception, runs: int) -> None:
    """A call that came to nothing runs again; one whose effect is certain does not."""
    ledger, work = _ledger(), _Work(error=error)
    for _ in range(2):
        with pytest.raises(type(error)):
            await _all(ledger, work)
    assert work.runs == runs


async def test_answers_are_bounded() -> None:
    """The oldest answers go when all of them take too much; nothing is kept for no time."""
    ledger, work = _ledger(), _Work(size=400)
    for call_id in ("a", "b", "c", "a"):
        await _all(ledger, work, call_id=call_id)
        await asyncio.sleep(0)
    assert work.runs == 4
    await _all(ledger, work, call_id="c")
    assert work.runs == 4
    none, again = _ledger(answer_seconds=0), _Work()
    for _ in range(2):
        await _all(none, again)
        await asyncio.sleep(0)
    assert again.runs == 2


async def test_without_an_id_it_ends_with_its_caller() -> None:
    """A call that nobody can come back to is cancelled at once."""
    ledger, work = _ledger(), _Work(wait=True)
    caller = asyncio.create_task(_all(ledger, work, call_id=""))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.gather(caller, return_exceptions=True)
    assert work.cancelled == 1
