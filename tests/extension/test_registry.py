"""What the registry keeps, and for whom."""

import asyncio
import json
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration

from gaggle.extension.v1 import extension_pb2
from gaggle.extension.v1 import extension_service_pb2 as api
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.extension.asking import Asker, http, odd, stdio
from tests.extension.log import events_of, read_model
from tests.mcp_servers import servers
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh

_TOOL = json.dumps({"name": "pick", "description": "d", "inputSchema": {"type": "object"}, "x": 1})
EVERY_TYPE: dict[str, dict[str, Any]] = {
    "stdio": {
        "stdio": {
            "cmd": "uvx",
            "args": ["a b", ""],
            "envs": {"A": "1"},
            "env_keys": ["B"],
            "timeout": Duration(seconds=9),
            "cwd": "/w",
        }
    },
    "streamable_http": {
        "streamable_http": {
            "uri": "https://example.com/mcp",
            "envs": {"A": "1"},
            "env_keys": ["B"],
            "headers": {"X-Key": "${A}"},
            "timeout": Duration(seconds=9),
            "socket": "@egress",
        }
    },
    "builtin": {"builtin": {"display_name": "Developer", "timeout": Duration(seconds=300)}},
    "platform": {"platform": {"display_name": ""}},
    "frontend": {"frontend": {"tools_json": [_TOOL], "instructions": "i"}},
    "inline_python": {"inline_python": {"code": "print()", "dependencies": {"packages": ["a"]}}},
    "sse": {"sse": {"uri": "http://localhost/sse"}},
}


def _config(kind: str) -> extension_pb2.ExtensionConfig:
    return extension_pb2.ExtensionConfig(
        name=f"The {kind}",
        description="Does things — well",
        available_tools=["pick"],
        bundled=False,
        extra_json='{"later": [1]}',
        **EVERY_TYPE[kind],
    )


@pytest.mark.parametrize("kind", EVERY_TYPE)
async def test_every_type_is_kept_as_it_came(asker: Asker, kind: str) -> None:
    """What is registered is given back to the last field, of every type that goose has."""
    config = _config(kind)
    registered = (await asker("RegisterExtension", config=config, enabled=False)).extension
    assert registered.config == config
    found = (await asker("GetExtension", name=f"the{kind}")).extension
    assert found == registered
    assert (found.key, found.enabled, found.shared, found.etag) == (f"the{kind}", False, False, "1")
    assert found.connection.state == extension_pb2.CONNECTION_STATE_UNLOADED


async def test_lists_page_and_filter(asker: Asker, admin: Asker, user: str) -> None:
    """A list gives own ones, then shared ones, newest first, in pages, and by type, enabled, loaded and name."""
    own = [await asker.register(_config(kind), enabled=kind != "sse") for kind in EVERY_TYPE]
    shared_name = f"shared-{user}"
    shared = await admin.register(odd(shared_name), shared=True)

    async def listed(**fields: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            page = await asker("ListExtensions", page_size=2, page_token=token, **fields)
            assert len(page.extensions) <= 2
            # Shared ones of other tests stand beside ours.
            found += [one.id for one in page.extensions if not one.shared or one.id == shared]
            token = page.next_page_token
            if not token:
                return found

    assert await listed() == [*reversed(own), shared]
    assert await listed(type=api.EXTENSION_TYPE_SSE) == [own[-1]]
    assert await listed(enabled=False) == [own[-1]]
    assert await listed(name_prefix="THE in") == [own[5]]
    assert await listed(name_prefix=shared_name) == [shared]
    await asker("LoadExtension", extension_id=shared)
    assert await listed(loaded=True) == [shared]
    assert await listed(loaded=False) == list(reversed(own))
    wrong = await refused(asker("ListExtensions", page_size=2, page_token="bad"))
    assert (wrong.code, wrong.reason) == ("INVALID_ARGUMENT", "INVALID_PAGE_TOKEN")
    assert (await refused(asker("ListExtensions", page_size=-1))).fields == ("page_size",)


async def test_a_name_is_unique_per_user(asker: Asker, stranger: Asker, admin: Asker, user: str) -> None:
    """Of one key a user has one extension, whatever the spelling; another user and the shared ones have theirs."""
    name = f"My Tool {user}"
    first = await asker.register(odd(name))
    taken = await refused(asker.register(odd(name.upper())))
    assert (taken.code, taken.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
    await stranger.register(odd(name))
    shared = await admin.register(odd(name), shared=True)
    assert (await refused(admin.register(odd(name), shared=True))).code == "ALREADY_EXISTS"
    assert (await asker("GetExtension", name=name)).extension.id == first
    await asker("DeleteExtension", extension_id=first)
    assert (await asker("GetExtension", name=name)).extension.id == shared
    await asker.register(odd(name))


async def test_two_registrations_of_one_name_race(asker: Asker) -> None:
    """Of many at once, one registers the name."""
    attempts = await asyncio.gather(*(asker.register(odd("raced")) for _ in range(8)), return_exceptions=True)
    assert len([one for one in attempts if isinstance(one, str)]) == 1


async def test_shared_ones_are_an_admins(asker: Asker, admin: Asker, user: str) -> None:
    """An admin registers for all; a user may use it, not change it, and does not see what is secret in it."""
    name = f"shared-{user}"
    config = http(name, "https://example.com/mcp", envs={"K": "secret"}, headers={"Authorization": "Bearer secret"})
    denied = await refused(asker.register(config, shared=True))
    assert (denied.code, denied.reason, denied.facts) == ("PERMISSION_DENIED", "ROLE_REQUIRED", {"role": "admin"})
    extension_id = await admin.register(config, shared=True)
    seen = (await asker("GetExtension", extension_id=extension_id)).extension
    assert seen.redacted
    assert seen.config.streamable_http.headers == {"Authorization": ""}
    assert seen.config.streamable_http.envs == {"K": ""}
    assert not (await admin("GetExtension", extension_id=extension_id)).extension.redacted
    for call in (
        asker("UpdateExtension", extension_id=extension_id, enabled=False),
        asker("DeleteExtension", extension_id=extension_id),
    ):
        assert (await refused(call)).code == "PERMISSION_DENIED"
    await admin("DeleteExtension", extension_id=extension_id)
    assert (await refused(asker("GetExtension", extension_id=extension_id))).code == "NOT_FOUND"


async def test_an_update_changes_what_is_set(asker: Asker) -> None:
    """Fields that are not set stay; a stale etag is ABORTED; a new name has to be free."""
    extension_id = await asker.register(odd("before"))
    await asker.register(odd("taken"))
    updated = await asker("UpdateExtension", name="before", etag="1", enabled=False)
    assert updated.etag == "2"
    found = (await asker("GetExtension", extension_id=extension_id)).extension
    assert (found.config, found.enabled, found.update_time) == (odd("before"), False, updated.update_time)
    stale = await refused(asker("UpdateExtension", extension_id=extension_id, etag="1", enabled=True))
    assert (stale.code, stale.reason, stale.facts) == ("ABORTED", "STALE_ETAG", {"etag": "1", "current": "2"})
    assert (await refused(asker("UpdateExtension", name="before", config=odd("Taken")))).code == "ALREADY_EXISTS"
    await asker("UpdateExtension", extension_id=extension_id, config=odd("after"))
    assert (await asker("GetExtension", name="after")).extension.id == extension_id
    assert (await refused(asker("GetExtension", name="before"))).code == "NOT_FOUND"
    stale = await refused(asker("DeleteExtension", extension_id=extension_id, etag="1"))
    assert stale.reason == "STALE_ETAG"


async def test_repeating_a_request_has_one_effect(asker: Asker) -> None:
    """The same request_id gives the first answer again; with another body it is refused."""
    answers = [await asker("RegisterExtension", request_id="r", config=odd("once")) for _ in range(2)]
    assert answers[0] == answers[1]
    extension_id = answers[0].extension.id
    reused = await refused(asker("RegisterExtension", request_id="r", config=odd("twice")))
    assert (reused.code, reused.reason) == ("INVALID_ARGUMENT", "REQUEST_ID_REUSED")
    loads = [await asker("LoadExtension", request_id="l", extension_id=extension_id) for _ in range(2)]
    assert loads[0] == loads[1]
    updates = [await asker("UpdateExtension", request_id="u", name="once", enabled=False) for _ in range(2)]
    assert updates[0] == updates[1]
    for _ in range(2):
        await asker("DeleteExtension", request_id="d", extension_id=extension_id)
    await asker("DeleteExtension", extension_id=extension_id)


async def test_another_users_extension_is_not_there(asker: Asker, stranger: Asker) -> None:
    """Every method answers NOT_FOUND for another user's id or name, as for one that never was."""
    extension_id = await asker.loaded(odd("mine"))
    for wanted in (extension_id, "0199a0b0-0000-7000-8000-000000000000"):
        calls = [
            stranger("GetExtension", extension_id=wanted),
            stranger("UpdateExtension", extension_id=wanted, enabled=False),
            stranger("DeleteExtension", extension_id=wanted),
            stranger("LoadExtension", extension_id=wanted),
            stranger("UnloadExtension", extension_id=wanted),
            stranger("ListTools", extension_id=wanted),
            stranger.call("count", extension_id=wanted),
            stranger("CancelToolCall", extension_id=wanted, call_id="c"),
        ]
        for call in calls:
            refusal = await refused(call)
            assert (refusal.code, refusal.facts) == ("NOT_FOUND", {"type": "extension", "id": wanted})
    assert (await refused(stranger("LoadExtension", name="mine"))).code == "NOT_FOUND"


async def test_events_tell_of_it_in_order(mesh: Mesh, asker: Asker, user: str) -> None:
    """Each change has its event in the log, revisions without a gap, and nothing secret in any of them."""
    config = odd("told", envs={"TOLD_SECRET": "do-not-tell"})
    extension_id = await asker.loaded(config)
    await asker("UnloadExtension", extension_id=extension_id)
    await asker("LoadExtension", extension_id=extension_id)
    await asker("UpdateExtension", extension_id=extension_id, enabled=False)
    await asker("DeleteExtension", extension_id=extension_id)
    wanted = [
        *((1, "registered"), (2, "loaded"), (3, "unloaded"), (4, "loaded")),
        *((5, "updated"), (5, "unloaded"), (6, "deleted")),
    ]

    async def told() -> list[Any]:
        events = await events_of(mesh, user)
        return events if len(events) == len(wanted) else []

    events = await eventually(told, within=30, what="seven events in the log")
    assert [(one["revision"], one["event_type"].removeprefix("goose.extension.")) for one in events] == wanted
    assert "do-not-tell" not in str(events)
    assert {one["data"]["name"] for one in events} == {"told"}
    assert events[1]["data"]["server"] == {"name": "odd", "version": "1.0", "protocolVersion": "2026-07-28"}
    assert await read_model(mesh, user) == [("told", "deleted", "stdio")]


async def test_tools_of_a_front_end_are_listed_and_not_called(asker: Asker) -> None:
    """Tools that a client's front end runs are listed as registered; there is nothing here to call."""
    extension_id = await asker.register(_config("frontend"))
    (tool,) = (await asker("ListTools", extension_id=extension_id)).tools
    assert (tool.name, tool.input_schema_json) == ("pick", '{"type":"object"}')
    assert (await refused(asker.call("pick", extension_id=extension_id))).facts == {"type": "frontend"}


async def test_available_tools_bound_what_is_offered(asker: Asker) -> None:
    """A tool that `available_tools` leaves out is neither listed nor called."""
    config = odd("some")
    config.available_tools.extend(["count"])
    extension_id = await asker.loaded(config)
    assert [one.name for one in (await asker("ListTools", extension_id=extension_id)).tools] == ["count"]
    assert (await refused(asker.call("whoami", extension_id=extension_id))).facts["type"] == "tool"
    assert await asker.text("count", extension_id=extension_id) == "1"


async def test_types_that_are_not_run_here(asker: Asker) -> None:
    """Loading one of goose's own types is FAILED_PRECONDITION, and so is a disabled extension."""
    for kind in ("builtin", "platform", "frontend", "inline_python", "sse"):
        extension_id = await asker.register(_config(kind))
        refusal = await refused(asker("LoadExtension", extension_id=extension_id))
        assert (refusal.code, refusal.reason, refusal.facts) == ("FAILED_PRECONDITION", "WRONG_STATE", {"type": kind})
    disabled = await asker.register(stdio("off", servers.TIME), enabled=False)
    assert (await refused(asker("LoadExtension", extension_id=disabled))).facts == {"state": "disabled"}
    unloaded = await asker.register(odd("unloaded"))
    for call in (asker("ListTools", extension_id=unloaded), asker.call("count", extension_id=unloaded)):
        refusal = await refused(call)
        assert (refusal.code, refusal.facts) == ("FAILED_PRECONDITION", {"state": "unloaded"})
