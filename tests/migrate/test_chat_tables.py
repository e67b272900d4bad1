"""`gaggle migrate chat-tables` on real tables and the real mesh."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cli.conversations.client import Target, connect
from gaggle.conversation.v1.message_pb2 import Message, Role
from tests.conditions import eventually
from tests.mesh_fixture import Mesh
from tests.migrate.chatbot import Chatbot

pytestmark = [pytest.mark.mesh, pytest.mark.xdist_group("chat-tables")]
_WITHIN = 60.0
_SAY_X = """
INSERT INTO messages (conversation_id, user_id, role, content) SELECT id, user_id, 'user', 'x' FROM conversations
"""
Reader = Callable[[str], Awaitable[dict[str, list[Message]]]]


@pytest.fixture
def stored(mesh: Mesh) -> Reader:
    """What the conversation service has of a user, by conversation."""

    async def read(user: str) -> dict[str, list[Message]]:
        async with connect(Target.find(data=mesh.data.path, user=user), timeout_seconds=30) as client:
            return {
                one.id: [message async for message in client.messages(one.id)]
                async for one in client.conversations(100)
            }

    return read


def plain(messages: list[Message]) -> list[tuple[str, str, str, int]]:
    """Id, role, text and time, as the tables have them."""
    return [
        (
            one.id,
            Role.Name(one.role).removeprefix("ROLE_").lower(),
            "".join(part.text.text for part in one.content),
            one.original_time.ToMicroseconds(),
        )
        for one in messages
    ]


async def assert_equal(bot: Chatbot, stored: Reader, users: list[str], *, ordered: bool = True) -> None:
    """Every user has in the service what the tables have, and nothing else; `ordered`: in the tables' own order."""
    for user in users:
        there = await stored(user)
        ids = [
            str(one)
            for (one,) in bot.sql("SELECT id FROM conversations WHERE user_id = %s ORDER BY created_at, id", [user])
        ]
        assert sorted(there) == sorted(ids)
        if ordered:
            assert list(there) == ids[::-1]  # newest first
        for conversation_id, messages in there.items():
            wanted = bot.sql(
                "SELECT id::text, role, content, (extract(epoch FROM created_at AT TIME ZONE 'UTC') * 1000000)::bigint"
                " FROM messages WHERE conversation_id = %s ORDER BY created_at, id",
                [int(conversation_id)],
            )
            assert plain(messages) == wanted


def report(bot: Chatbot) -> dict[str, Any]:
    """What the migration says of itself."""
    phases = json.loads((bot.work / "migration.json").read_text())["phases"]
    assert isinstance(phases, dict)
    return phases


async def test_the_whole_way(bot: Chatbot, stored: Reader, users: list[str]) -> None:
    """Inspect, backup, copy, verify, switch, revisions, drop, and back from the backup; each phase twice."""
    count = bot.fill(40, 60, users)
    before = bot.rows()
    assert await bot("inspect") == f"40 conversations of {len(users)} users, {count:,} messages\n"
    for _ in range(2):
        await bot("backup")
    assert report(bot)["backup"]["rows"] == {"conversations": 40, "messages": count}

    await bot("copy")
    assert (report(bot)["copy"]["done"], report(bot)["copy"]["done_messages"]) == (40, count)
    await bot("copy")
    assert (report(bot)["copy"]["done"], report(bot)["copy"]["done_before"]) == (0, 40)
    # Even where nothing is remembered of the first time.
    (bot.work / "copied.jsonl").unlink()
    await bot("copy")
    assert report(bot)["copy"]["done"] == 40
    await assert_equal(bot, stored, users)

    for done, done_before in ((40, 0), (0, 40)):
        await bot("verify")
        verified = report(bot)["verify"]
        assert (verified["done"], verified["done_before"], verified["faulty"]) == (done, done_before, 0)
    for _ in range(2):
        await bot("switch")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        bot.sql("INSERT INTO conversations (user_id) VALUES ('ann')")
    assert await bot("verify", "--again")

    first = (await bot("revisions")).splitlines()
    assert len(first) == 2
    again = (await bot("revisions")).splitlines()
    assert again == [f"{line} (there already)" for line in first]
    bot.alembic("upgrade", "+1")
    ((comment,),) = bot.sql("SELECT obj_description('messages'::regclass)")
    assert comment.startswith("Deprecated")
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        bot.sql("DELETE FROM messages")
    bot.alembic("upgrade", "head")
    assert bot.sql("SELECT to_regclass('conversations'), to_regclass('messages')") == [(None, None)]
    assert bot.sql("SELECT count(*) FROM users") == [(0,)]
    assert "not done" not in await bot("status")

    bot.alembic("downgrade", "-1")
    await bot("restore")
    assert bot.rows() == before
    assert (await bot.run("restore")).code == 4
    ((next_id,),) = bot.sql("INSERT INTO conversations (user_id) VALUES ('ann') RETURNING id")
    assert next_id == 41
    bot.alembic("downgrade", "base")
    # The mesh has all of it, whatever became of the tables.
    assert sum([len(await stored(user)) for user in users]) == 40


async def killed(bot: Chatbot, command: str, when: Callable[[], bool], *arguments: object) -> None:
    """Start a phase and `kill -9` it in the middle of its work."""
    process = await bot.start(command, *arguments)

    async def reached() -> bool:
        assert process.returncode is None, f"{command} ended before it could be killed"
        return await asyncio.to_thread(when)

    await eventually(reached, within=_WITHIN, what=f"{command} at work")
    process.send_signal(signal.SIGKILL)
    await process.communicate()
    assert process.returncode == -signal.SIGKILL


def lines(path: Path) -> int:
    """How many lines a file has; none if it is not there."""
    return path.read_text().count("\n") if path.exists() else 0


async def test_killed_in_each_phase(bot: Chatbot, stored: Reader, users: list[str]) -> None:
    """kill -9 in the middle of every phase: run again it goes on, and nothing is lost, doubled or half done."""
    bot.fill(60, 20, users)
    slow = ("--per-second", 40)

    # The second table is held by somebody while the first one is written already.
    with psycopg.connect(bot.url) as holder:
        holder.execute("LOCK TABLE messages IN ACCESS EXCLUSIVE MODE")
        begun = bot.work / "backup.new" / "conversations.csv.gz"
        await killed(bot, "backup", begun.exists)
    assert not (bot.work / "backup").exists()
    assert (await bot.run("copy")).code == 4
    await bot("backup")

    for least in (10, 30):
        await killed(bot, "copy", lambda least=least: lines(bot.work / "copied.jsonl") >= least, *slow)  # type: ignore[misc]
    # As a machine that lost its power would leave it.
    with (bot.work / "copied.jsonl").open("a") as file:
        file.write('["17", "hal')
    await bot("copy")
    assert report(bot)["copy"]["done_before"] >= 30
    await assert_equal(bot, stored, users)

    await killed(bot, "verify", lambda: lines(bot.work / "verified.jsonl") >= 20, *slow)
    assert (await bot.run("switch")).code == 4
    await bot("verify")
    assert report(bot)["verify"]["done_before"] >= 20

    for n in range(60):
        bot.sql(
            "WITH c AS (INSERT INTO conversations (user_id) VALUES (%s) RETURNING id)"
            " INSERT INTO messages (conversation_id, user_id, role, content) SELECT id, %s, 'user', 'late' FROM c",
            [users[n % 4], users[n % 4]],
        )
    await killed(bot, "switch", lambda: lines(bot.work / "copied.jsonl") >= 80, *slow)
    # The tables refuse writes from the beginning: nothing slips in while nobody looks.
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        bot.sql("INSERT INTO conversations (user_id) VALUES ('ann')")
    await killed(bot, "switch", lambda: lines(bot.work / "verified.jsonl") >= 80, *slow)
    await bot("switch")
    assert report(bot)["switch"]["conversations"] == 120
    await assert_equal(bot, stored, users)
    assert await bot("verify", "--again")

    written = [Path(line) for line in (await bot("revisions")).splitlines()]
    # Killed between the two.
    written[1].unlink()
    again = (await bot("revisions")).splitlines()
    assert [line.endswith("(there already)") for line in again] == [True, False]
    bot.alembic("upgrade", "head")


async def test_tables_that_are_still_in_use(bot: Chatbot, stored: Reader, users: list[str]) -> None:
    """What is said, changed, named, moved and deleted after the copy is brought over by the next one, or the switch."""
    bot.fill(20, 10, users)
    bot.sql(_SAY_X)
    await bot("backup")
    await bot("copy")
    await bot("verify")
    bot.sql(
        "INSERT INTO messages (conversation_id, user_id, role, content)"
        " SELECT id, user_id, 'assistant', 'more' FROM conversations WHERE id <= 5"
    )
    bot.sql("UPDATE messages SET content = 'changed' WHERE conversation_id = 7")
    bot.sql("DELETE FROM messages WHERE id = (SELECT max(id) FROM messages WHERE conversation_id = 8)")
    bot.sql("UPDATE conversations SET title = 'Shopping' WHERE id = 9")
    bot.sql("DELETE FROM conversations WHERE id = 10")
    # Two accounts became one.
    bot.sql("UPDATE messages SET user_id = %s WHERE conversation_id = 12", [users[0]])
    bot.sql("UPDATE conversations SET user_id = %s WHERE id = 12", [users[0]])
    bot.sql("INSERT INTO conversations (user_id) VALUES (%s)", [users[0]])
    failed = await bot.run("verify")
    assert failed.code == 1
    assert "conversation 7 of" in failed.err
    await bot("copy")
    await assert_equal(bot, stored, users, ordered=False)
    assert report(bot)["copy"]["deleted"] == 1
    await bot("verify")
    bot.sql("UPDATE messages SET content = 'changed again' WHERE conversation_id = 7")
    bot.sql("DELETE FROM conversations WHERE id = 11")
    await bot("switch")
    await assert_equal(bot, stored, users, ordered=False)


async def test_a_switch_and_back(bot: Chatbot, users: list[str]) -> None:
    """A switch refuses writes and is undone by a word; a writer that does not let go leaves all as it was."""
    bot.fill(3, 3, users)
    for phase in ("backup", "copy", "verify"):
        await bot(phase)
    with psycopg.connect(bot.url) as writer:
        writer.execute("INSERT INTO conversations (user_id) VALUES ('ann')")
        held = await bot.run("switch")
        assert (held.code, "nothing was changed" in held.err) == (1, True)
        writer.rollback()
    bot.sql("INSERT INTO conversations (user_id) VALUES (%s)", [users[0]])
    await bot("switch")
    for statement in (
        "INSERT INTO conversations (user_id) VALUES ('ann')",
        "UPDATE messages SET content = ''",
        "DELETE FROM conversations",
        "TRUNCATE messages",
    ):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction, match="moved to Gaggle"):
            bot.sql(statement)
    assert (await bot.run("copy")).code == 4
    for _ in range(2):
        await bot("switch", "--undo")
    bot.sql("INSERT INTO conversations (user_id) VALUES (%s)", [users[0]])
    await bot("copy")


async def test_what_can_t_be_moved(bot: Chatbot, stored: Reader, users: list[str]) -> None:
    """Rows that the service would not take are told with their reason; the others are moved; nothing is half there."""
    bot.fill(6, 4, users[:1])
    bot.sql(_SAY_X)
    bot.sql("UPDATE messages SET role = 'wizard' WHERE conversation_id = 1")
    bot.sql("UPDATE messages SET content = repeat('x', 1048577) WHERE conversation_id = 2")
    bot.sql("UPDATE messages SET user_id = %s WHERE conversation_id = 3", [users[1]])
    bot.sql("UPDATE conversations SET user_id = repeat('ü', 65) WHERE id = 4")
    reasons = {
        "1": "the role 'wizard' is not known",
        "2": "the limit is 1048576",
        "3": "belongs to another user",
        "4": "user_id must be 1 to 128 bytes",
    }
    inspected = await bot.run("inspect")
    assert inspected.code == 1
    await bot("backup")
    copied = await bot.run("copy")
    assert (copied.code, report(bot)["copy"]["faulty"]) == (1, 4)
    for conversation_id, why in reasons.items():
        for said in (inspected.err, copied.err):
            assert any(
                line.startswith(f"conversation {conversation_id} of ") and why in line for line in said.splitlines()
            )
    assert sorted(await stored(users[0])) == ["5", "6"]
    assert (await bot.run("verify")).code == 1
    refused = await bot.run("switch")
    assert (refused.code, "4 conversations are not verified" in refused.err) == (4, True)
    bot.sql("UPDATE messages SET role = 'assistant' WHERE conversation_id = 1")
    assert (await bot.run("copy")).code == 1
    assert (await bot.run("verify")).code == 1
    await bot("switch", "--leave-faulty")
    assert sorted(await stored(users[0])) == ["1", "5", "6"]


async def test_another_s_conversation_of_that_id(bot: Chatbot, mesh: Mesh, stored: Reader, users: list[str]) -> None:
    """A conversation that a user has under the same id already is never touched."""
    bot.fill(2, 5, users[:1])
    async with connect(Target.find(data=mesh.data.path, user=users[0]), timeout_seconds=30) as client:
        from gaggle.conversation.v1 import conversation_service_pb2 as pb

        request = pb.CreateConversationRequest(conversation_id="1", title="Mine")
        await client.call(client.stub.CreateConversation, request, pb.CreateConversationResponse)
    await bot("backup")
    copied = await bot.run("copy")
    assert (copied.code, "did not come from here" in copied.err) == (1, True)
    assert (await stored(users[0]))["1"] == []


async def test_retention(bot: Chatbot, stored: Reader, users: list[str]) -> None:
    """With --keep-messages a conversation keeps its newest, as a chatbot's do, and that is what is verified."""
    bot.sql("INSERT INTO conversations (id, user_id) VALUES (1, %s)", users[:1])
    bot.sql(
        "INSERT INTO messages (conversation_id, user_id, role, content)"
        " SELECT 1, %s, 'user', n::text FROM generate_series(1, 700) n",
        users[:1],
    )
    await bot("backup")
    await bot("copy", "--keep-messages", 200)
    await bot("verify")
    messages = (await stored(users[0]))["1"]
    assert 200 <= len(messages) < 700
    assert messages[-1].content[0].text.text == "700"
    await bot("copy", "--again")
    await bot("verify", "--again")
    assert (await stored(users[0]))["1"] == messages


async def test_from_elsewhere(bot: Chatbot, mesh: Mesh, stored: Reader, users: list[str], tmp_path: Path) -> None:
    """A mesh that this machine has no keys of is reached through its sidecars, with an admin's token."""
    bot.fill(5, 5, users)
    await bot("backup")
    sidecar = mesh.service("conversation").sidecar_grpc
    conversations = ("--address", sidecar, "--app-id", mesh.service("conversation").app_id)
    where = (*conversations, "--auth-address", sidecar, "--auth-app-id", mesh.service("auth").app_id)
    nowhere = {"GAGGLE_DATA": str(tmp_path / "nothing")}
    user_token = mesh.token(users[0])
    refused = await bot.run("copy", *where, "--token", user_token, **nowhere)
    assert (refused.code, "ROLE_REQUIRED" in refused.err) == (1, True)
    assert user_token not in refused.err
    admin = mesh.token("root", roles=["admin"])
    await bot("copy", *where, "--token", admin, **nowhere)
    await bot("verify", *where, **nowhere, GAGGLE_TOKEN=admin)
    await assert_equal(bot, stored, users)
    assert (await bot.run("copy", *conversations, "--token", admin, **nowhere)).code == 2


async def test_refusals(bot: Chatbot, users: list[str], tmp_path: Path) -> None:
    """What can't be right is refused in a sentence, before anything is written."""
    bot.fill(2, 2, users)

    async def refuses(code: int, text: str, command: str, *arguments: object, **environment: str) -> None:
        said = await bot.run(command, *arguments, **environment)
        assert (said.code, text in said.err) == (code, True), said.err
        assert "Traceback" not in said.err

    await refuses(1, "must be named as postgresql://", "inspect", "--from", "mysql://localhost/app")
    await refuses(1, "can't be reached", "inspect", "--from", f"postgresql://nobody@/none?host={tmp_path}")
    await refuses(1, "no table 'chats'", "inspect", "--conversations", "chats")
    await refuses(1, "in the schema 'nowhere'", "inspect", "--schema", "nowhere")
    await refuses(1, "no column content, conversation_id, role", "inspect", "--messages", "users")
    await refuses(1, "no time zone 'Mars/Olympus'", "inspect", "--zone", "Mars/Olympus")
    await refuses(2, "--per-second", "copy", "--per-second", "-1")
    for command in ("copy", "verify", "switch", "revisions"):
        await refuses(4, "first", command)
    await refuses(1, "no whole backup", "restore")
    await bot("backup")
    await refuses(3, "", "copy", "--data", tmp_path / "nothing")
    await refuses(4, "has rows", "restore")
    (bot.work / "backup" / "messages.csv.gz").write_bytes(b"cut off")
    await refuses(1, "damaged", "restore")
    await bot("backup")

    bot.sql("CREATE TABLE other_conversations (LIKE conversations)")
    await refuses(4, "belongs to the migration of other tables", "copy", "--conversations", "other_conversations")
    bot.sql("DROP TABLE other_conversations")
    slow = await bot.start("copy", "--per-second", 0.5)

    async def at_work() -> bool:
        return lines(bot.work / "copied.jsonl") > 0

    await eventually(at_work, within=_WITHIN, what="the first copy at work")
    await refuses(4, "Another process", "copy")
    slow.kill()
    await slow.communicate()

    await bot("copy")
    await bot("verify")
    await bot("switch")
    await refuses(1, "name the project's alembic.ini", "revisions", "--alembic", tmp_path / "nothing.ini")
    for name in ("a", "b"):
        bot.alembic("revision", "--head", "0001", "--splice", "-m", name)
    await refuses(1, "Alembic says", "revisions")


async def test_rows_that_were_never_moved_are_not_dropped(bot: Chatbot, users: list[str]) -> None:
    """The revisions run in an empty database too, and stop in one whose rows nobody has moved."""
    bot.fill(2, 2, users)
    for phase in ("backup", "copy", "verify", "switch", "revisions"):
        await bot(phase)
    await bot("switch", "--undo")
    bot.sql("INSERT INTO conversations (user_id) VALUES ('ann')")
    assert "were not moved" in bot.alembic("upgrade", "head", code=1)
    bot.sql("TRUNCATE conversations CASCADE")
    bot.alembic("upgrade", "head")
    assert bot.sql("SELECT to_regclass('conversations')") == [(None,)]
