"""`gaggle conversations import`: what is stored, whatever breaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.transcripts import MAX_MESSAGE_BYTES
from gaggle.conversation.v1.message_pb2 import ROLE_USER, Message, TextContent
from tests.conversations_cli.fake_service import Fault, Result, Service, refuse

Gaggle = Callable[..., Result]


def lost(code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Fault:
    """A call that ends on the way, with no word from our service."""

    def strike(context: grpc.ServicerContext) -> None:
        context.abort(code, "Socket closed")

    return strike


def busy(context: grpc.ServicerContext) -> None:
    """A refusal that passes."""
    refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_REQUESTS", "too many", retry_seconds=0.01)


def passing(context: grpc.ServicerContext) -> None:
    """No fault."""


def chat(tmp_path: Path, count: int = 250, name: str = "chat.json", **members: Any) -> Path:
    """A file of `count` messages, whose texts are their numbers."""
    messages = [{"role": ("user", "assistant")[number % 2], "content": str(number)} for number in range(count)]
    file = tmp_path / name
    file.write_text(json.dumps({"messages": messages} | members))
    return file


def numbers(count: int) -> list[str]:
    """What `chat` says."""
    return [str(number) for number in range(count)]


def test_import_stores_every_message_in_order(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """Every message is stored once, in the file's order, and the id is printed."""
    result = gaggle("import", chat(tmp_path))
    assert result.code == 0
    assert service.fake.texts() == [numbers(250)]
    [(user, conversation_id)] = service.fake.stored
    assert user == "ada"
    assert result.out == f"{conversation_id}\n"
    assert "250 messages stored" in result.err


def test_second_import_changes_nothing(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """The same content, under another name and laid out in another way, is recognised and not stored again."""
    first = gaggle("import", chat(tmp_path))
    again = tmp_path / "copy.json"
    again.write_text(json.dumps(json.loads(chat(tmp_path).read_text()), indent=3))
    second = gaggle("import", again)
    assert (second.code, second.out) == (0, first.out)
    assert "there already" in second.err
    assert service.fake.texts() == [numbers(250)]


def test_users_are_apart(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """The same file under two users makes two conversations, and each user lists one."""
    ids = {gaggle("import", chat(tmp_path), user=user).out for user in ("ada", "bob")}
    assert len(ids) == len(service.fake.stored) == 2
    for user in ("ada", "bob"):
        assert len(gaggle("list", "--json", user=user).out.splitlines()) == 1


FAULTS: dict[str, tuple[str, str, list[Fault]]] = {
    "unavailable": ("before", "AppendMessages", [lost(), lost()]),
    "answer-lost": ("after", "AppendMessages", [lost(), passing, lost()]),
    "deadline": ("after", "AppendMessages", [lost(grpc.StatusCode.DEADLINE_EXCEEDED)]),
    "reset-by-a-proxy": ("after", "AppendMessages", [lost(grpc.StatusCode.INTERNAL), lost(grpc.StatusCode.UNKNOWN)]),
    "flood": ("before", "AppendMessages", [busy, busy, busy]),
    "creation-lost": ("after", "CreateConversation", [lost(), lost()]),
    "reads-lost": ("before", "GetConversation", [lost(), lost(), lost()]),
}


@pytest.mark.parametrize(("when", "method", "faults"), FAULTS.values(), ids=FAULTS.keys())
def test_import_survives(
    gaggle: Gaggle, service: Service, tmp_path: Path, when: str, method: str, faults: list[Fault]
) -> None:
    """A call that fails on the way, before or after its effect, is repeated; nothing is lost and nothing doubled."""
    getattr(service.fake, when)[method] = list(faults)
    result = gaggle("import", chat(tmp_path))
    assert result.code == 0
    assert service.fake.texts() == [numbers(250)]
    assert not getattr(service.fake, when)[method]


def test_import_survives_a_killed_service(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """A service that is killed in the middle of an append and comes back a second later costs time, not messages."""
    import threading

    def die(_context: grpc.ServicerContext) -> None:
        def kill_and_start() -> None:
            service.kill()
            service.start()

        threading.Thread(target=kill_and_start).start()

    service.fake.after["AppendMessages"] = [passing, die]
    result = gaggle("import", chat(tmp_path))
    assert result.code == 0
    assert service.fake.texts() == [numbers(250)]


@given(plan=st.lists(st.sampled_from(["before", "after", "no"]), max_size=12), sizes=st.lists(st.integers(1, 130)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_import_survives_any_order_of_faults(
    gaggle: Gaggle, service: Service, tmp_path: Path, plan: list[str], sizes: list[int]
) -> None:
    """Whichever answers are lost, and however large the messages, each is stored once and in order."""
    service.fake.stored.clear()
    service.fake.answers.clear()
    file = tmp_path / "chat.jsonl"
    texts = [f"{number} {'x' * size * 1000}" for number, size in enumerate([1, *sizes])]
    file.write_text("".join(json.dumps({"role": "user", "content": text}) + "\n" for text in texts))
    for when in ("before", "after"):
        getattr(service.fake, when)["AppendMessages"] = [lost() if each == when else passing for each in plan]
    result = gaggle("import", file)
    assert result.code == 0
    assert service.fake.texts() == [texts]


def test_import_goes_on_where_it_stopped(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """An import that gave up is finished by the same command, which sends only what is missing."""
    service.fake.before["AppendMessages"] = [passing, *[lost()] * 1000]
    stopped = gaggle("import", chat(tmp_path), "--timeout", "0.3")
    assert stopped.code == 3
    assert "goes on from here" in stopped.err
    assert service.fake.texts() == [numbers(100)]
    service.fake.before.clear()
    service.fake.calls.clear()
    resumed = gaggle("import", chat(tmp_path))
    assert resumed.code == 0
    assert "150 messages stored after the 100 of an earlier run" in resumed.err
    assert service.fake.texts() == [numbers(250)]
    assert service.fake.calls.count("AppendMessages") == 2


def test_import_does_not_mix_with_what_others_wrote(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """If somebody else wrote into the conversation before the import was complete, it stops and says so."""
    service.fake.before["AppendMessages"] = [passing, *[lost()] * 1000]
    gaggle("import", chat(tmp_path), "--timeout", "0.3")
    service.fake.before.clear()
    [stored] = service.fake.stored.values()
    stored.messages.append(Message(role=ROLE_USER, sequence=101))
    stored.messages[-1].content.add(text=TextContent(text="Hello, it's me"))
    stored.conversation.last_sequence = 101
    result = gaggle("import", chat(tmp_path))
    assert result.code == 1
    assert "somebody else wrote to it" in result.err
    assert len(stored.messages) == 101


def test_two_imports_at_once_agree(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """A message batch that another import of the same file stored first is counted as stored."""
    first = chat(tmp_path)
    second = chat(tmp_path, name="same.json")
    result = gaggle("import", first, second)
    assert result.code == 0
    assert service.fake.texts() == [numbers(250)]


def test_deleted_conversation_can_be_imported_again(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """After a delete the same file gives a new conversation, and once more the same command changes nothing."""
    first = gaggle("import", chat(tmp_path)).out.strip()
    assert gaggle("delete", "--yes", first).code == 0
    second = gaggle("import", chat(tmp_path)).out.strip()
    third = gaggle("import", chat(tmp_path)).out.strip()
    assert first != second == third
    assert [message.content[0].text.text for message in service.fake.messages_of("ada", second)] == numbers(250)


def test_every_conversation_of_a_file_is_stored(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """A file of many conversations makes as many, and one that is there twice is stored once."""
    lines = [{"messages": [{"role": "user", "content": str(number % 30)}]} for number in range(31)]
    file = tmp_path / "tuning.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = gaggle("import", "--quiet", file)
    assert result.code == 0
    assert sorted(int(texts[0]) for texts in service.fake.texts()) == list(range(30))
    assert len(set(result.out.split())) == 30
    assert not result.err


def test_faulty_file_leaves_nothing_behind(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """One faulty file among good ones is told with line and column, exit code 2, and the service is never called."""
    bad = tmp_path / "bad.json"
    bad.write_text('[{"role": "user"},\n {"role": 1}]')
    result = gaggle("import", chat(tmp_path), bad, tmp_path / "none.json")
    assert result.code == 2
    assert f"{bad}:2:11: [1].role: must be one of" in result.err
    assert f"{tmp_path / 'none.json'}: No such file" in result.err
    assert not service.fake.calls


def test_largest_messages_are_sent_one_by_one(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """Messages near the limit of 1 MiB never make an append larger than the service takes."""
    text = "x" * (MAX_MESSAGE_BYTES - 64)
    file = tmp_path / "large.jsonl"
    file.write_text((json.dumps({"role": "user", "content": text}) + "\n") * 3)
    assert gaggle("import", file).code == 0
    assert service.fake.texts() == [[text] * 3]
    assert service.fake.calls.count("AppendMessages") == 3


def test_own_id_and_title(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """The caller may name the conversation's id and title; without a title it is how the conversation begins."""
    assert gaggle("import", chat(tmp_path), "--conversation", "mine", "--title", "Numbers").out == "mine\n"
    assert gaggle("import", chat(tmp_path, 3)).code == 0
    assert [each.conversation.title for each in service.fake.stored.values()] == ["Numbers", "0"]


def test_export_is_what_was_imported(gaggle: Gaggle, service: Service, tmp_path: Path) -> None:
    """An export equals the file, to standard output or to a file, and takes what was appended since."""
    source = chat(tmp_path, 1203, model="m")
    conversation_id = gaggle("import", source).out.strip()
    assert json.loads(gaggle("export", conversation_id).out) == json.loads(source.read_text())
    target = tmp_path / "export.json"
    assert gaggle("export", conversation_id, "-o", target).out == ""
    assert json.loads(target.read_text()) == json.loads(source.read_text())
    assert not list(tmp_path.glob(".export*"))
    lines = gaggle("export", conversation_id, "--format", "sharegpt").out
    assert len(json.loads(lines)["conversations"]) == 1203
    assert service.fake.calls.count("AppendMessages") == 13
