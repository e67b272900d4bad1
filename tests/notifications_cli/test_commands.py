"""`gaggle notifications` on a real mesh, as programs of their own."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable

import pytest

from cli.mesh.data import PROJECT_ROOT
from services.notification.tokens import UnsubscribeTokens
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified

pytestmark = pytest.mark.mesh

Command = Callable[..., Awaitable[str]]


@pytest.fixture
def gaggle(mesh: Mesh, user: str) -> Command:
    """Runs `gaggle` as the test's user; gives standard output, or with `code` what it said on stderr."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    environment = {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "GAGGLE_USER": user, "TZ": "Europe/Berlin"}

    async def run(*arguments: str, code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", *arguments),
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == code, err.decode()
        return (err if code else out).decode()

    return run


async def test_list_and_read(mesh: Mesh, gaggle: Command, user: str) -> None:
    """The inbox is listed newest first, whatever a title holds; what is read is no longer among the unread."""
    async with mesh.channel("notification") as channel:
        told = Notified(mesh, channel, user)
        for title in ("one", "two \x1b[31mred"):
            await told.tell(title)
    table = await gaggle("notifications", "list")
    assert await gaggle("notifications") == table
    assert "\x1b" not in table
    assert table.index("two") < table.index("one")
    first, second = [json.loads(line) for line in (await gaggle("notifications", "list", "--json")).splitlines()]
    assert (await gaggle("notifications", "read", first["id"])).strip() == "1"
    unread = [json.loads(line) for line in (await gaggle("notifications", "list", "--unread", "--json")).splitlines()]
    assert [one["id"] for one in unread] == [second["id"]]
    assert (await gaggle("notifications", "read", "--all")).strip() == "0"
    assert "no notification" in await gaggle("notifications", "read", first["id"][::-1], code=1)
    await gaggle("notifications", "read", code=2)


async def test_preferences_are_set_and_shown(gaggle: Command) -> None:
    """What is named changes, the rest stays, and no secret is shown."""
    secret = "x" * 30
    await gaggle("notifications", "preferences", "--email", "ann@example.org", "--quiet", "22:00-07:00")
    hook = ("--webhook", "https://example.org/hook", "--secret", secret)
    shown = await gaggle("notifications", "preferences", *hook, "--mute", "message", "--zone", "Europe/Berlin")
    for wanted in ("ann@example.org", "22:00-07:00", "https://example.org/hook", "Europe/Berlin", "muted"):
        assert wanted in shown
    assert secret not in shown
    found = json.loads(await gaggle("notifications", "preferences", "--email", "none", "--json"))
    assert "emailAddress" not in found
    assert found["quietHours"] == {"start": "22:00", "end": "07:00"}
    assert "quiet_hours.start" in await gaggle("notifications", "preferences", "--quiet", "late", code=1)
    await gaggle("notifications", "preferences", "--exempt", "message", code=2)


async def test_unsubscribing_by_a_mail_s_token(mesh: Mesh, gaggle: Command, user: str) -> None:
    """Whoever reads the mailbox to which unsubscribing goes ends e-mail by the token; a forged one is refused."""
    tokens = UnsubscribeTokens()
    tokens.use((mesh.data.keys / "notification.jwk").read_text())
    await gaggle("notifications", "preferences", "--email", "ann@example.org")
    await gaggle("notifications", "unsubscribe", tokens.make(user))
    assert "emailAddress" not in json.loads(await gaggle("notifications", "preferences", "--json"))
    assert "token" in await gaggle("notifications", "unsubscribe", "forged", code=1)


async def test_parked_is_an_admin_s(mesh: Mesh, gaggle: Command) -> None:
    """Parked deliveries are listed and redriven by admins alone."""
    assert "admin" in await gaggle("notifications", "parked", code=1)
    token = mesh.token("ops", roles=("admin",))
    await gaggle("notifications", "parked", "--token", token)
    missing = "0199c2a0-0000-7000-8000-000000000001"
    assert missing in await gaggle("notifications", "redrive", missing, "--token", token, code=1)
