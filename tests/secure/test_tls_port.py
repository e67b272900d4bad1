"""A service's own port by TLS: for clients that come straight, and for the sidecar that delivers to it."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
import yaml

from cli.conversations.errors import UnreachableError
from cli.dashboard.collecting import Collector
from cli.mesh.certificates import Certificates, ensure_certificates
from cli.mesh.data import PROJECT_ROOT
from gaggle.audit.v1 import audit_service_pb2 as api
from gaggle.audit.v1 import audit_service_pb2_grpc
from tests.cli.command import gaggle
from tests.conditions import eventually
from tests.conversation.talking import Talker
from tests.extension.asking import Asker, odd
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.slow]

_SERVICES = ("conversation", "audit", "extension")
_WITHIN = 60.0
SAMPLE = PROJECT_ROOT / "cli" / "samples" / "observatory.jsonl"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """What the services show."""
    return ensure_certificates(tmp_path_factory.mktemp("tls") / "services", "service")


@pytest.fixture(scope="module")
def encrypted(private_mesh: Callable[..., Mesh], certificates: Certificates, tmp_path_factory: Any) -> Mesh:
    """Services whose ports take TLS alone."""
    document = yaml.safe_load((PROJECT_ROOT / "dapr.yaml").read_text())
    common = document["common"]
    common |= {
        "resourcesPaths": [str(PROJECT_ROOT / "dapr-components" / "local")],
        "configFilePath": str(PROJECT_ROOT / "dapr-components" / "local" / "config.yaml"),
    }
    document["apps"] = [one for one in document["apps"] if one["appID"] in _SERVICES]
    for one in document["apps"]:
        one |= {"appDirPath": str(PROJECT_ROOT), "appProtocol": "grpcs"}
        one["env"] |= {
            "GAGGLE_TLS_CERTIFICATE_FILE": str(certificates.server),
            "GAGGLE_TLS_KEY_FILE": str(certificates.server),
            "GAGGLE_TLS_AUTHORITY_FILE": str(certificates.authority),
        }
    file: Path = tmp_path_factory.mktemp("run") / "dapr.yaml"
    file.write_text(yaml.safe_dump(document))
    return private_mesh(run_file=file, replicas={"extension": 2})


def _channel(mesh: Mesh, service: str, authority: Path, replica: int = 0) -> grpc.aio.Channel:
    port = mesh.service(service).replicas[replica].address.rpartition(":")[2]
    return grpc.aio.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(authority.read_bytes()))


async def test_clients_sidecars_and_deliveries_come_by_tls(
    encrypted: Mesh, certificates: Certificates, user: str
) -> None:
    """A client that knows the authority is served; so is one by a sidecar; and events are delivered."""
    async with (
        _channel(encrypted, "conversation", certificates.authority) as straight,
        _channel(encrypted, "audit", certificates.authority) as audit,
        encrypted.sidecar("audit") as sidecar,
    ):
        conversation_id = await Talker(straight, encrypted.metadata(user)).create("hello")
        through = Talker(sidecar, encrypted.metadata(user, app_id=encrypted.service("conversation").app_id))
        assert await through.history(conversation_id) == [(1, "hello")]
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(audit)

        async def logged() -> bool:
            answer = await stub.ListEvents(api.ListEventsRequest(), metadata=encrypted.metadata(user))
            return len(answer.entries) == 2

        await eventually(logged, within=_WITHIN, what="both events in the log")


async def test_the_command_line_and_the_dashboard_come_by_tls(encrypted: Mesh, user: str) -> None:
    """Commands find in mesh.json whose certificate a service shows; so does the dashboard."""
    added = await asyncio.to_thread(
        gaggle, "conversations", "import", str(SAMPLE), "--user", user, data=encrypted.data.path
    )
    assert added.returncode == 0, added.stderr
    level = await asyncio.to_thread(gaggle, "log-level", "audit", data=encrypted.data.path)
    assert (level.returncode, level.stdout) == (0, "audit: info\n"), level.stderr

    collector = Collector(encrypted.data)
    try:

        async def shown() -> bool:
            state = await collector.state()
            assert not [one for one in state["problems"] if not one.startswith("reminders")], state["problems"]
            return {one["level"] for one in state["services"]} == {"info"} and bool(state["events"])

        await eventually(shown, within=_WITHIN, what="levels and events on the dashboard")
    finally:
        await collector.close()


async def test_an_address_that_is_a_url_is_called_by_tls(
    encrypted: Mesh, certificates: Certificates, user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mesh elsewhere is called as https://HOST:PORT, by an authority that the environment names, and by no other."""
    url = f"https://localhost:{encrypted.service('conversation').address.rpartition(':')[2]}"
    words = ("conversations", "list", "--address", url, "--timeout", "3")
    monkeypatch.setenv("GAGGLE_TOKEN", encrypted.token(user))
    for authority, code in ((str(certificates.authority), 0), ("", UnreachableError.exit_code)):
        monkeypatch.setenv("GAGGLE_TLS_AUTHORITY_FILE", authority)
        result = await asyncio.to_thread(gaggle, *words, data=encrypted.data.path)
        assert result.returncode == code, result.stderr


async def test_replicas_pass_calls_on_by_tls(encrypted: Mesh, certificates: Certificates, user: str) -> None:
    """A call that reaches another replica than the one with the connection is passed on, by the same authority."""
    async with (
        _channel(encrypted, "extension", certificates.authority) as one,
        _channel(encrypted, "extension", certificates.authority, 1) as two,
    ):
        first, second = (Asker(channel, encrypted.metadata(user)) for channel in (one, two))
        await first.loaded(odd())
        assert [await asker.text("count", name="odd") for asker in (first, second, first)] == ["1", "2", "3"]


async def test_who_speaks_no_tls_or_knows_another_authority_is_not_served(
    encrypted: Mesh, user: str, tmp_path: Path
) -> None:
    """A plain client gets no answer, and one that trusts somebody else gives none of its own."""
    stranger = ensure_certificates(tmp_path / "stranger", "service")
    for channel in (encrypted.channel("conversation"), _channel(encrypted, "conversation", stranger.authority)):
        async with channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await Talker(channel, encrypted.metadata(user)).create("hello")
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
