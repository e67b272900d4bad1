"""What may be run and connected to."""

import asyncio
import ipaddress
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from services.extension.domain import changes_loading
from services.extension.http import CheckedTransport
from services.extension.process import Death
from services.extension.targets import AddressPolicy, TargetBlockedError, find_command, is_public
from tests.conversation.talking import refused
from tests.extension.asking import Asker, http, odd, stdio
from tests.mcp_servers import servers

_BLOCKED = ("PERMISSION_DENIED", "MCP_TARGET_BLOCKED")

_ALLOWED = (("uvx", "mcp-server-time"), ("npx", "-y", "@scope/server"), ("/opt/mcp/run",))


@pytest.mark.parametrize(
    ("cmd", "args"),
    [
        pytest.param("sh", ["-c", "true"], id="not on the list"),
        pytest.param("uvx", [], id="fewer words than the entry"),
        pytest.param("uvx", ["mcp-server-time-evil"], id="a longer word"),
        pytest.param("uvx", ["--from", "evil", "mcp-server-time"], id="words in between"),
        pytest.param("./uvx", ["mcp-server-time"], id="a path instead of a name"),
        pytest.param("/elsewhere/uvx", ["mcp-server-time"], id="another program of the name"),
        pytest.param("UVX", ["mcp-server-time"], id="other letters"),
        pytest.param("uvx mcp-server-time", [], id="one word with a space"),
        pytest.param("/opt/mcp/../mcp/run", [], id="a path with dots"),
    ],
)
def test_a_command_that_is_not_on_the_list(cmd: str, args: list[str]) -> None:
    """A command is run only if an entry of the list is the beginning of its words, word for word."""
    with pytest.raises(TargetBlockedError):
        find_command(cmd, args, _ALLOWED, "/usr/bin")


def test_a_command_that_is(tmp_path: Path) -> None:
    """A name is looked up in the deployment's path; an absolute path is taken as it is."""
    program = tmp_path / "npx"
    program.write_text("")
    program.chmod(0o755)
    assert find_command("npx", ["-y", "@scope/server", "--more"], _ALLOWED, str(tmp_path)) == str(program)
    assert find_command("/opt/mcp/run", ["x"], _ALLOWED, "") == "/opt/mcp/run"
    with pytest.raises(FileNotFoundError):
        find_command("uvx", ["mcp-server-time"], _ALLOWED, str(tmp_path))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3",  # noqa: S104
        "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.0.8", "198.18.0.1", "224.0.0.1", "255.255.255.255", "240.0.0.1",
        "::", "::1", "fe80::1", "fe80::1%eth0", "fec0::1", "fd00::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
        "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:f5ff:fffe",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    """Loopback, private, link-local, shared, reserved and multicast addresses are no targets, in any disguise."""
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_are(address: str) -> None:
    """Public addresses pass."""
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "uri",
    [
        "ftp://example.com", "file:///etc/passwd", "http://", "http:///path", "https://user:pass@example.com/",
        "http://example.com:0/", "http://[::1", "unix:///run/x", "//example.com",
    ],
)  # fmt: skip
def test_uris_that_are_not_connected_to(uri: str) -> None:
    """A URI must be http or https, name a host, and carry no credentials."""
    with pytest.raises(TargetBlockedError):
        AddressPolicy(["example.com"]).check_uri(uri)


async def test_every_address_of_a_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with one private address among public ones is blocked; an allowed host is not, on its port alone."""
    answers = [["8.8.8.8", "10.0.0.1"], ["8.8.8.8"], ["10.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]]

    async def resolve(_host: str, port: int, **_more: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(0, 0, 0, "", (one, port)) for one in answers.pop(0)]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    policy = AddressPolicy(["inside", "other:8080"])
    with pytest.raises(TargetBlockedError):
        await policy.resolve("rebound.example", 443)
    assert await policy.resolve("good.example", 443) == "8.8.8.8"
    assert await policy.resolve("INSIDE.", 443) == "10.0.0.1"
    assert await policy.resolve("other", 8080) == "10.0.0.1"
    with pytest.raises(TargetBlockedError):
        await policy.resolve("other", 22)


async def test_the_checked_address_is_the_one_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is resolved once a request; the connection goes to that address, and carries the name as its host."""
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        asked: list[str] = []

        async def resolve(host: str, *_: object, **_more: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
            asked.append(host)
            assert len(asked) == 1, "resolved a second time: it may be another address by then"
            return [(0, 0, 0, "", ("127.0.0.1", port))]

        monkeypatch.setattr(AddressPolicy, "resolve", _once(resolve))
        transport = CheckedTransport(AddressPolicy([]), Death(), max_body_bytes=1000)
        async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
            response = await client.get(f"http://name.example:{port}/")
        assert response.text == "ok"
        assert f"Host: name.example:{port}".lower().encode() in seen[0].lower()


def _once(resolve: object) -> object:
    async def replaced(_self: AddressPolicy, host: str, port: int) -> str:
        found = await resolve(host, port)  # type: ignore[operator]
        return str(found[0][4][0])

    return replaced


async def test_a_body_is_bounded() -> None:
    """An answer larger than the limit is cut off while it is read, and a compressed one is not read at all."""
    for head, body in ((b"content-length: 5000", b"x" * 5000), (b"content-encoding: gzip\r\ncontent-length: 2", b"xx")):
        async with _http(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n" + body) as port:
            transport = CheckedTransport(AddressPolicy(["localhost"]), Death(), max_body_bytes=1000)
            async with httpx2.AsyncClient(transport=transport, trust_env=False) as client:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await client.get(f"http://localhost:{port}/")


@asynccontextmanager
async def _http(answer: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "name", ["PATH", "LD_PRELOAD", "ld_library_path", "DYLD_INSERT_LIBRARIES", "PYTHONPATH", "NODE_OPTIONS", "UV_INDEX"]
)
def test_variables_that_change_how_programs_load(name: str) -> None:
    """Names by which a listed command could be made to run something else are known, in any case."""
    assert changes_loading(name)


# -- the same, on the mesh


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("cmd", "args"),
    [
        pytest.param("sh", ["-c", "touch /tmp/owned"], id="a shell"),
        pytest.param(servers.ODD[0], ["-c", "print()"], id="other arguments"),
        pytest.param("mcp-server-time", [], id="a name in place of the path"),
    ],
)
async def test_a_command_not_allowed(asker: Asker, cmd: str, args: list[str]) -> None:
    """It is registered as it came, and loading it is PERMISSION_DENIED, MCP_TARGET_BLOCKED."""
    extension_id = await asker.register(stdio("bad", cmd, *args))
    refusal = await refused(asker("LoadExtension", extension_id=extension_id))
    assert (refusal.code, refusal.reason) == _BLOCKED
    assert refusal.facts == {"target": cmd}


@pytest.mark.mesh
@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:50101/", "http://169.254.169.254/latest/meta-data/", "http://[::1]/", "http://10.0.0.1/mcp",
        "http://0.0.0.0:80/", "http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0x7f.1/",
        "https://user:pw@example.com/",
    ],
)  # fmt: skip
async def test_an_address_not_allowed(asker: Asker, uri: str) -> None:
    """A private or link-local address is PERMISSION_DENIED, MCP_TARGET_BLOCKED, however it is written."""
    extension_id = await asker.register(http("bad", uri))
    refusal = await refused(asker("LoadExtension", extension_id=extension_id))
    assert (refusal.code, refusal.reason) == _BLOCKED


@pytest.mark.mesh
async def test_a_unix_socket_is_not_connected_to(asker: Asker) -> None:
    """An extension that names a socket is kept and not connected to."""
    extension_id = await asker.register(http("bad", "http://localhost/mcp", socket="/run/docker.sock"))
    refusal = await refused(asker("LoadExtension", extension_id=extension_id))
    assert (refusal.code, refusal.reason) == _BLOCKED


@pytest.mark.mesh
async def test_a_redirect_to_elsewhere_is_not_followed(asker: Asker) -> None:
    """A server that points to another origin is not followed there, so nothing private is reached by way of it."""
    asked: list[bytes] = []

    async def inside(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(inside, "127.0.0.1", 0) as hidden:
        place = f"http://127.0.0.1:{hidden.sockets[0].getsockname()[1]}/".encode()
        head = b"HTTP/1.1 307 Temporary Redirect\r\nlocation: " + place + b"\r\ncontent-length: 0\r\n\r\n"
        async with _http(head) as port:
            extension_id = await asker.register(http("bad", f"http://localhost:{port}/mcp"))
            refusal = await refused(asker("LoadExtension", extension_id=extension_id))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "EXTENSION_UNAVAILABLE")
    assert asked == []


@pytest.mark.mesh
async def test_the_callers_token_is_not_passed_on(asker: Asker) -> None:
    """A server sees the headers that were declared, with secrets put in, and nothing of the caller's."""
    async with servers.odd_over_http() as port:
        config = http(
            "headers",
            f"http://localhost:{port}/mcp",
            envs={"WHO": "me"},
            env_keys=["TEST_SECRET"],
            headers={"X-Who": "$WHO", "Authorization": "Bearer ${TEST_SECRET}", "X-Other": "$UNKNOWN"},
        )
        extension_id = await asker.loaded(config)
        seen = json.loads(await asker.text("headers", extension_id=extension_id))
    assert (seen["x-who"], seen["authorization"], seen["x-other"]) == ("me", "Bearer hush", "$UNKNOWN")
    assert asker.metadata[0][1].removeprefix("Bearer ") not in json.dumps(seen)
    assert not [name for name in seen if name.startswith(("gaggle", "dapr", "traceparent", "grpc"))]


@pytest.mark.mesh
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        pytest.param({"envs": {"LD_PRELOAD": "x"}}, "config.stdio.envs[LD_PRELOAD]", id="a loader's name"),
        pytest.param({"env_keys": ["PATH"]}, "config.stdio.env_keys[PATH]", id="a loader's name as a key"),
        pytest.param({"envs": {"a b": "x"}}, "config.stdio.envs[a b]", id="no name"),
        pytest.param({"envs": {"A": "\0"}}, "config.stdio.envs[A]", id="a zero byte"),
        pytest.param({"timeout": {"seconds": -1}}, "config.stdio.timeout", id="a negative time"),
    ],
)
async def test_an_environment_not_taken(asker: Asker, fields: dict[str, object], named: str) -> None:
    """An environment that could change what is run is INVALID_ARGUMENT, and the field is named."""
    refusal = await refused(asker.register(odd("bad", **fields)))
    assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", (named,))


@pytest.mark.mesh
async def test_secrets_that_are_not_for_users(asker: Asker, admin: Asker, user: str) -> None:
    """A user's own extension may ask for the listed secrets alone; one that is missing is told by its name."""
    other = await asker.register(odd("other", env_keys=["OPENAI_API_KEY"]))
    refusal = await refused(asker("LoadExtension", extension_id=other))
    assert (refusal.code, refusal.reason, refusal.facts) == (*_BLOCKED, {"target": "OPENAI_API_KEY"})
    missing = await asker.register(odd("missing", env_keys=["MISSING_SECRET"]))
    refusal = await refused(asker("LoadExtension", extension_id=missing))
    assert (refusal.code, refusal.reason) == ("UNAVAILABLE", "EXTENSION_UNAVAILABLE")
    assert "MISSING_SECRET" in refusal.message
    shared = await admin.register(odd(f"shared-{user}", env_keys=["ANY_OTHER"]), shared=True)
    assert (await refused(asker("LoadExtension", extension_id=shared))).reason == "EXTENSION_UNAVAILABLE"
