"""Out of goose's SQLite file, on the real mesh: the four steps, both ways, kills, differences."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bench import goose_sessions
from cli.goose.database import GooseDatabase
from cli.goose.service import Mesh as Service
from cli.goose.service import Where
from cli.goose.service import mesh as connect
from cli.migrate.goose_state import State
from gaggle.agent.v1 import agent_service_pb2 as agent_api
from gaggle.conversation.v1.message_pb2 import ROLE_USER, ContentPart, Message, TextContent
from tests.conditions import eventually
from tests.goose.test_pieces import EXPORTS, MESSAGES, PARTS
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh]

SESSIONS = 40


class Gaggle:
    """The command line for one user and one file."""

    def __init__(self, mesh: Mesh, user: str, file: Path) -> None:
        self.file = file
        self._common = ("--user", user, "--data", str(mesh.data.path))
        self._user = user

    def command(self, step: str, *options: str) -> list[str]:
        """A step's words."""
        place = ("--db", str(self.file))
        return [sys.executable, "-m", "cli.main", "migrate", "goose", step, *options, *place, *self._common]

    def __call__(self, step: str, *options: str, code: int = 0) -> dict[str, Any]:
        """Run a step to its end; gives its report."""
        done = subprocess.run(self.command(step, *options), capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code, done.stdout + done.stderr
        return self.report(step)

    def report(self, step: str) -> dict[str, Any]:
        """What the newest run of a step has reported."""
        found: dict[str, Any] = json.loads((State(self.file).directory / f"report-{step}.json").read_text())
        return found

    def goose(self, *words: str) -> str:
        """What a command of `gaggle goose` prints."""
        return self.other("goose", *words)

    def other(self, *words: str) -> str:
        """What another command prints."""
        command = [sys.executable, "-m", "cli.main", *words, *self._common]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, step: str) -> tuple[int, str]:
        """A step that is not to succeed: exit code and stderr."""
        done = subprocess.run(self.command(step), capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stderr

    def started(self, step: str) -> "subprocess.Popen[bytes]":
        """A step that goes on until it is stopped."""
        return subprocess.Popen(self.command(step), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def killed(self, step: str, *options: str, or_told: str = "") -> int:
        """Kill a step again and again, each time a little later, until one run is faster; gives how often.

        `or_told`: what one is told that comes after a run which was killed behind its last act.
        """
        kills, patience = 0, 0.3
        while True:
            process = subprocess.Popen(self.command(step, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            try:
                out, _ = process.communicate(timeout=patience)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills, patience = kills + 1, patience * 1.5
            else:
                ended = process.returncode == 0 or (kills and or_told and or_told in out.decode())
                assert ended, out.decode()
                return kills

    def sql(self, statement: str, *values: Any) -> list[Any]:
        """What goose, or a person's hand, does to the file."""
        with closing(sqlite3.connect(self.file)) as connection, connection:
            return connection.execute(statement, values).fetchall()

    def whole(self) -> dict[str, Any]:
        """All that the file has."""
        database = GooseDatabase(self.file)
        found = {}
        for name in database.quick():
            local = database.session(name)
            assert local is not None
            found[name] = (local.digest, local.messages, local.ledger)
        database.close()
        return found


@pytest.fixture
def gaggle(mesh: Mesh, user: str, tmp_path: Path) -> Gaggle:
    """A file of forty sessions, none of them in the mesh."""
    goose_sessions.make(tmp_path / "sessions.db", SESSIONS, sizes=(0, 25))
    return Gaggle(mesh, user, tmp_path / "sessions.db")


@pytest.fixture
async def service(mesh: Mesh, user: str) -> AsyncIterator[Service]:
    """The mesh as the user's other programs have it."""
    async with connect(Where(data=mesh.data.path, user=user)) as there:
        yield there


def said(text: str) -> Message:
    """A message of one text."""
    return Message(role=ROLE_USER, content=[ContentPart(text=TextContent(text=text))])


async def say(service: Service, session: str, text: str) -> None:
    """Append to a session's conversation past the migration."""
    there = await service.conversation(session)
    assert there is not None
    await service.append(session, int(there.last_sequence), [said(text)])


async def test_the_whole_way(gaggle: Gaggle, service: Service) -> None:
    """Four steps bring all of it over; each may be repeated; reads follow the switch; a copy of the file stays."""
    before = gaggle.whole()
    done = gaggle("dual-write", "--once")
    assert (done["sessions_looked_at"], done["left_alone"]) == (SESSIONS, [])
    assert done["messages_to_mesh"] == sum(len(messages) for _, messages, _ in before.values())
    again = gaggle("dual-write", "--once")
    assert (again["sessions_looked_at"], again["messages_to_mesh"], again["ledger_lines_to_mesh"]) == (0, 0, 0)
    verified = gaggle("verify")
    assert (verified["sessions"], verified["differences"], verified["phase"]) == (SESSIONS, [], "verified")
    assert verified["ledger_lines"] == done["ledger_lines_to_mesh"] > 0
    name = max(before, key=lambda one: len(before[one][1]))
    listed = gaggle.goose("list", "--limit", "1", "--db", str(gaggle.file))
    assert json.loads(listed)["from"] == "file"
    from_file = json.loads(gaggle.goose("export-session", name, "--db", str(gaggle.file)))
    assert gaggle("switch")["phase"] == "switched"
    assert gaggle("switch")["already"]
    assert json.loads(gaggle.goose("list", "--limit", "1", "--db", str(gaggle.file)))["from"] == "mesh"
    assert json.loads(gaggle.goose("export-session", name, "--db", str(gaggle.file))) == from_file
    assert gaggle.whole() == before
    # As long as the sides differ, the file stays: here by a session that both have changed.
    gaggle.sql("UPDATE sessions SET name = 'here' WHERE id = ?", name)
    await service.update_session(agent_api.UpdateSessionRequest(session_id=name, name="there"))
    assert gaggle("remove", "--yes", code=1)["phase"] == "switched"
    assert gaggle.file.exists()
    gaggle("dual-write", "--once", "--prefer", "mesh")
    before = gaggle.whole()
    from_file = json.loads(gaggle.goose("export-session", name))
    removed = gaggle("remove", "--yes")
    assert not list(gaggle.file.parent.glob("sessions.db*.db")) + list(gaggle.file.parent.glob("sessions.db-*"))
    assert not gaggle.file.exists()
    assert gaggle("remove", "--yes")["phase"] == "removed"
    kept = Gaggle.__new__(Gaggle)
    kept.file = Path(removed["kept"])
    assert kept.whole() == before
    assert json.loads(gaggle.goose("export-session", name))["conversation"] == from_file["conversation"]


async def test_both_sides_are_written(gaggle: Gaggle, service: Service) -> None:
    """What goose adds comes to the mesh, what the mesh adds to the file; of what both changed, nothing is touched."""
    gaggle("dual-write", "--once")
    names = list(gaggle.whole())
    mine, yours, both, edited, gone, lost = names[:6]
    insert = (
        "INSERT INTO messages (message_id, session_id, role, content_json, created_timestamp) "
        'VALUES (?, ?, \'user\', \'[{"type": "text", "text": "from goose"}]\', 1800000000)'
    )
    gaggle.sql(insert, "new-1", mine)
    gaggle.sql(insert, "new-2", both)
    gaggle.sql(
        'UPDATE messages SET metadata_json = \'{"userVisible":true,"agentVisible":false}\' WHERE session_id = ?', edited
    )
    gaggle.sql("UPDATE sessions SET name = 'renamed', updated_at = datetime('now') WHERE id = ?", edited)
    for table in ("messages", "usage_ledger"):
        gaggle.sql(f"DELETE FROM {table} WHERE session_id = ?", gone)  # noqa: S608 - a test's own words
    gaggle.sql("DELETE FROM sessions WHERE id = ?", gone)
    await say(service, yours, "from the mesh")
    await say(service, both, "from the mesh, too")
    await service.delete_conversation(lost)
    own = await service.create_session(agent_api.CreateSessionRequest(session_id=f"{mine}-own", name="of the mesh"))
    assert own is not None
    before = gaggle.whole()
    report = gaggle("dual-write", "--once", code=1)
    assert [one["session"] for one in report["left_alone"]] == [both]
    assert "both sides have changed" in report["left_alone"][0]["why"]
    after = gaggle.whole()
    assert after[both] == before[both]
    assert after[yours][1][-1]["content"] == [{"type": "text", "text": "from the mesh"}]
    assert f"{mine}-own" in after
    assert lost not in after
    assert [one.content[0].text.text for one in await service.messages(mine)][-1] == "from goose"
    assert all(one.hidden_from_agent for one in await service.messages(edited))
    renamed = await service.session(edited)
    assert renamed is not None
    assert renamed.name == "renamed"
    assert await service.conversation(gone) is None
    there = gaggle("verify", code=1)
    assert {one["session"] for one in there["differences"]} == {both}
    gaggle.sql(insert, "new-3", mine)
    report = gaggle("dual-write", "--once", "--prefer", "mesh")
    assert report["left_alone"] == []
    # What the file alone has changed is not undone by that.
    assert len(await service.messages(mine)) == len(gaggle.whole()[mine][1]) == len(after[mine][1]) + 1
    assert gaggle.whole()[both][1][-1]["content"][0]["text"] == "from the mesh, too"
    assert gaggle("verify")["differences"] == []


def test_turns_of_the_mesh_reach_the_file(gaggle: Gaggle) -> None:
    """A chat turn in a session of goose's ends up in goose's file, with its usage, once; and back it does not go."""
    gaggle("dual-write", "--once")
    name = next(name for name, (_, messages, _) in gaggle.whole().items() if messages)
    before = gaggle.whole()[name]
    gaggle.other("chat", "say hello", "--session", name, "--model", "offline")
    for _ in range(2):
        gaggle("dual-write", "--once")
        _, messages, ledger = gaggle.whole()[name]
        assert len(messages) == len(before[1]) + 2
        assert messages[-1]["role"] == "assistant"
        assert len(ledger) == len(before[2]) + 1
        assert ledger[-1]["model"] == "offline"
    assert gaggle("verify")["differences"] == []
    # goose goes on in the same session; only what is its own goes over.
    gaggle.sql(
        "INSERT INTO usage_ledger (session_id, created_timestamp, model, input_tokens) VALUES (?, unixepoch(), 'm', 5)",
        name,
    )
    assert gaggle("dual-write", "--once")["ledger_lines_to_mesh"] == 1
    assert gaggle("verify")["differences"] == []


DIFFERENCES: list[tuple[str, int, str, str]] = [
    (
        "text changed in the file",
        0,
        "message",
        "UPDATE messages SET content_json = '[]' WHERE id = (SELECT MIN(id) FROM messages WHERE session_id = ?)",
    ),
    (
        "message gone from the file",
        1,
        "message-missing-in-file",
        "DELETE FROM messages WHERE id = (SELECT MIN(id) FROM messages WHERE session_id = ?)",
    ),
    (
        "message hidden in the file",
        2,
        "message",
        "UPDATE messages SET metadata_json = NULL WHERE id = (SELECT MAX(id) FROM messages WHERE session_id = ?)",
    ),
    ("session renamed in the file", 3, "session", "UPDATE sessions SET name = 'by hand' WHERE id = ?"),
    ("sum changed in the file", 4, "session", "UPDATE sessions SET accumulated_input_tokens = 1 WHERE id = ?"),
    (
        "line of usage changed",
        5,
        "ledger",
        "UPDATE usage_ledger SET output_tokens = 77 WHERE id = (SELECT MIN(id) FROM usage_ledger WHERE session_id = ?)",
    ),
    (
        "line of usage gone",
        6,
        "ledger-missing-in-file",
        "DELETE FROM usage_ledger WHERE id = (SELECT MIN(id) FROM usage_ledger WHERE session_id = ?)",
    ),
]


async def test_ten_differences_are_found_and_repaired(gaggle: Gaggle, service: Service) -> None:
    """Ten differences planted by hand, seven in the file and three in the mesh: all are found, named and repaired."""
    gaggle.sql(
        "DELETE FROM messages WHERE session_id NOT IN "
        "(SELECT session_id FROM usage_ledger GROUP BY session_id HAVING COUNT(*) > 2)"
    )
    gaggle.sql("DELETE FROM sessions WHERE id NOT IN (SELECT session_id FROM messages)")
    gaggle.sql("DELETE FROM usage_ledger WHERE session_id NOT IN (SELECT id FROM sessions)")
    gaggle("dual-write", "--once")
    assert gaggle("verify")["differences"] == []
    names = list(gaggle.whole())
    assert len(names) >= 12
    wanted = []
    for _, number, kind, statement in DIFFERENCES:
        gaggle.sql(statement, names[number])
        wanted.append((names[number], kind))
    await say(service, names[7], "by hand")
    wanted.append((names[7], "message-missing-in-file"))
    there = await service.conversation(names[8])
    assert there is not None
    await service.truncate(names[8], int(there.last_sequence) - 1, there.etag)
    wanted.append((names[8], "message-missing-in-mesh"))
    await service.delete_conversation(names[9])
    wanted.append((names[9], "missing-in-mesh"))
    found = gaggle("verify", code=1)
    assert sorted((one["session"], one["kind"]) for one in found["differences"]) == sorted(wanted)
    assert found["phase"] == "dual-write"
    repaired = gaggle("verify", "--fix")
    assert (repaired["differences_found"], repaired["differences_repaired"]) == (10, 10)
    assert gaggle("verify")["differences"] == []
    # What the file alone had changed is in the mesh now, and what the mesh alone had changed is in the file.
    session = await service.session(names[3])
    assert session is not None
    assert session.name == "by hand"
    assert gaggle.whole()[names[7]][1][-1]["content"][0]["text"] == "by hand"
    assert gaggle.sql("SELECT COUNT(*) FROM usage_ledger WHERE output_tokens = 77 AND session_id = ?", names[5]) == [
        (0,)
    ]


async def test_killed_in_every_step(gaggle: Gaggle, service: Service) -> None:
    """kill -9 at any moment of any step: the same command goes on, nothing is lost, doubled or mixed up."""
    before = gaggle.whole()
    kills = {"dual-write": gaggle.killed("dual-write", "--once")}
    assert gaggle("verify")["differences"] == []
    assert gaggle.whole() == before
    for name in list(before)[:10]:
        await say(service, name, "from the mesh")
        gaggle.sql(
            "UPDATE messages SET content_json = '[]' WHERE id = (SELECT MIN(id) FROM messages WHERE session_id = ?)",
            list(before)[-1],
        )
    kills["pull"] = gaggle.killed("dual-write", "--once")
    kills["verify"] = gaggle.killed("verify", "--fix")
    kills["switch"] = gaggle.killed("switch")
    kills["undo-switch"] = gaggle.killed("undo", or_told="undo --yes")
    assert gaggle("verify")["phase"] == "verified"
    code, why = gaggle.refused("undo")
    assert (code, "undo --yes" in why) == (4, True)
    now = gaggle.whole()
    assert all(now[name][1][-1]["content"] == [{"type": "text", "text": "from the mesh"}] for name in list(before)[:10])
    assert sum(len(one[1]) for one in now.values()) == sum(len(one[1]) for one in before.values()) + 10
    kills["undo"] = gaggle.killed("undo", "--yes", or_told="has not begun")
    assert gaggle.whole() == now
    assert [await service.conversation(name) for name in before] == [None] * SESSIONS
    kills["again"] = gaggle.killed("dual-write", "--once")
    assert gaggle("verify")["differences"] == []
    kills["switch again"] = gaggle.killed("switch")
    kills["remove"] = gaggle.killed("remove", "--yes")
    assert not gaggle.file.exists()
    kept = Gaggle.__new__(Gaggle)
    kept.file = State(gaggle.file).final
    assert {name: one[:2] for name, one in kept.whole().items()} == {name: one[:2] for name, one in now.items()}
    assert all(count >= 1 for count in kills.values()), kills


async def test_follows_until_stopped(gaggle: Gaggle, service: Service) -> None:
    """Without --once it stays, brings over what either side writes meanwhile, and leaves at SIGTERM with its report."""
    process = gaggle.started("dual-write")
    try:
        name = next(iter(gaggle.whole()))

        async def copied() -> bool:
            return await service.conversation(name) is not None and await service.session(name) is not None

        await eventually(copied, within=60, what="the first session in the mesh")

        async def spoken() -> bool:
            await say(service, name, "live")
            return True

        async def settled() -> bool:
            state = State(gaggle.file)
            state.open()
            try:
                return len(state.levels()) == SESSIONS
            finally:
                state.close()

        await eventually(settled, within=60, what="all sessions level")
        await spoken()

        async def in_file() -> bool:
            messages = gaggle.whole()[name][1]
            return bool(messages) and messages[-1]["content"] == [{"type": "text", "text": "live"}]

        await eventually(in_file, within=60, what="the mesh's message in the file")
        gaggle.sql("UPDATE sessions SET name = 'live', updated_at = datetime('now') WHERE id = ?", name)

        async def in_mesh() -> bool:
            session = await service.session(name)
            return session is not None and session.name == "live"

        await eventually(in_mesh, within=60, what="the file's name in the mesh")
        code, why = gaggle.refused("switch")
        assert (code, "Another process" in why) == (4, True)
    finally:
        process.terminate()
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out.decode()
    assert gaggle.report("dual-write")["messages_to_file"] == 1


async def test_steps_keep_their_order(gaggle: Gaggle, service: Service) -> None:
    """A step before its time is refused with the next one's name, and nothing can be undone that was not done."""
    for step in ("verify", "switch", "undo"):
        code, why = gaggle.refused(step)
        assert (code, "has not begun" in why) == (4, True)
    code, why = gaggle.refused("remove")
    assert (code, "--yes" in why) == (2, True)
    assert await service.conversation(next(iter(gaggle.whole()))) is None


async def test_foreign_conversations_are_left_alone(gaggle: Gaggle, service: Service) -> None:
    """A conversation of the same id that the mesh has from elsewhere is neither written to nor taken over."""
    name = next(iter(gaggle.whole()))
    assert await service.create_conversation(name, "of somebody else", {})
    await service.append(name, 0, [said("mine")])
    report = gaggle("dual-write", "--once", code=1)
    assert [one["session"] for one in report["left_alone"]] == [name]
    assert [one.content[0].text.text for one in await service.messages(name)] == ["mine"]
    gaggle("undo", "--yes")
    assert [one.content[0].text.text for one in await service.messages(name)] == ["mine"]


def test_session_files(gaggle: Gaggle, tmp_path: Path, user: str) -> None:
    """A session export is imported once, however often, and exported value for value; faults name line and column."""
    # What no goose writes is refused in a file, though it comes through the database as it is.
    parts = [part for part in PARTS.values() if isinstance(part, dict) and "type" in part]
    spoken = [MESSAGES["all-kinds"] | {"content": parts}, MESSAGES["hidden"]]
    export = EXPORTS["current"] | {"id": f"{user}.1", "conversation": spoken}
    file = tmp_path / "session.json"
    file.write_text(json.dumps(export))
    for _ in range(2):
        assert gaggle.goose("import-session", str(file)).strip() == export["id"]
    assert json.loads(gaggle.goose("export-session", export["id"])) == export
    other = tmp_path / "other.json"
    other.write_text(json.dumps(export | {"name": "another"}))
    command = [sys.executable, "-m", "cli.main", "goose", "import-session", *gaggle.command("x")[-4:]]
    done = subprocess.run([*command, str(other)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, "--session" in done.stderr) == (4, True)
    other.write_text('{"name": "a",\n "working_dir": 1}')
    done = subprocess.run([*command, str(other)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, ":2:17" in done.stderr) == (2, True)
