"""`gaggle conversations` list, show, export, delete, search; and what is said when something is wrong."""

import json
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from cli.conversations.errors import Failure
from cli.samples import OBSERVATORY, sample
from tests.conversations_cli.fake_service import Result, Service, refuse

Gaggle = Callable[..., Result]


@pytest.fixture
def conversation_id(gaggle: Gaggle, tmp_path: Path) -> str:
    """The shipped sample, imported."""
    file = tmp_path / OBSERVATORY
    file.write_bytes(sample(OBSERVATORY).read_bytes())
    return gaggle("import", file).out.strip()


def test_list_and_its_limit(gaggle: Gaggle, service: Service, conversation_id: str, tmp_path: Path) -> None:
    """A list shows the newest first, page by page, and says when there are more than were asked for."""
    for number in range(5):
        file = tmp_path / f"{number}.json"
        file.write_text(json.dumps([{"role": "user", "content": f"Number {number}"}]))
        assert gaggle("import", file).code == 0
    shown = gaggle("list")
    assert shown.code == 0
    assert shown.out.index("Number 4") < shown.out.index("Number 0") < shown.out.index(conversation_id)
    listed = gaggle("list", "--json", "--limit", "3", "--page-size", "2")
    assert [json.loads(line)["title"] for line in listed.out.splitlines()] == ["Number 4", "Number 3", "Number 2"]
    assert "There are more" in listed.err
    assert service.fake.calls.count("ListConversations") >= 3
    assert "has no conversations" in gaggle("list", user="nobody").err


def test_show(gaggle: Gaggle, conversation_id: str) -> None:
    """The end of a conversation is shown with its speakers, tool calls and answers in words."""
    shown = gaggle("show", conversation_id, "--last", "5")
    assert shown.code == 0
    assert "the last 5" in shown.out
    assert "a small dessert" in shown.out
    whole = gaggle("show", conversation_id, "--last", "0")
    assert '→ search_notes({"query": "dome rotation fault", "limit": 3})' in whole.out
    lines = gaggle("show", conversation_id, "--json", "--last", "3").out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == ["438", "439", "440"]


def test_show_disarms_what_was_written(gaggle: Gaggle, tmp_path: Path) -> None:
    """Escape sequences and markup in a message reach the terminal as harmless text."""
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "\x1b]0;gotcha\x07 [bold]not bold[/bold] \u202e"}]))
    shown = gaggle("show", gaggle("import", file).out.strip())
    assert "\x1b" not in shown.out
    assert "\u202e" not in shown.out
    assert "[bold]not bold[/bold]" in shown.out


def test_delete_asks_and_may_be_repeated(
    gaggle: Gaggle, conversation_id: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nothing is deleted without a yes; a second delete is no error, nor is an id that never was."""
    import sys

    answer = tmp_path / "answer"
    answer.write_text("n\n")
    with answer.open() as no:
        monkeypatch.setattr(sys, "stdin", no)
        assert gaggle("delete", conversation_id).code == 0
    assert gaggle("show", conversation_id).code == 0
    assert gaggle("delete", "--yes", conversation_id).code == 0
    assert gaggle("show", conversation_id).code == 1
    again = gaggle("delete", "--yes", conversation_id, "never-was")
    assert again.code == 0
    assert "was deleted already" in again.err
    assert "never-was: there is none" in again.err


def test_search(gaggle: Gaggle, conversation_id: str) -> None:
    """Finds are shown with conversation and sequence, the snippet decoded."""
    found = gaggle("search", "telescope")
    assert conversation_id in found.out
    assert "a find & all" in found.out
    assert "Nothing was found" in gaggle("search", "zyzzyva").err


def test_refusal_is_one_line(gaggle: Gaggle, service: Service) -> None:
    """What the service refuses is told in one line with its reason, exit code 1, and without a stack trace."""
    result = gaggle("show", "nope")
    assert (result.code, result.err) == (1, "gaggle: there is no conversation 'nope' (NOT_FOUND)\n")

    def invalid(context: grpc.ServicerContext) -> None:
        refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "conversation_id: must match")

    service.fake.before["GetConversation"] = [invalid]
    result = gaggle("show", "a b")
    assert (result.code, result.err) == (1, "gaggle: conversation_id: must match (INVALID_FIELD)\n")


def test_nothing_listens(gaggle: Gaggle, service: Service, data: Path) -> None:
    """Where nothing answers, the command ends in time with exit code 3, and says which address it tried."""
    service.kill()
    result = gaggle("list", "--timeout", "0.3")
    assert result.code == 3
    assert service.address in result.err
    assert "Traceback" not in result.err
    result = gaggle("list", "--address", "", "--data", data.parent)
    assert result.code == 3
    assert "gaggle up" in result.err


@pytest.mark.parametrize(
    "arguments",
    [["import"], ["import", "x", "--format", "word"], ["export"], ["show", "x", "--last", "-1"], ["frobnicate"]],
    ids=["no-file", "no-format", "no-id", "negative", "no-command"],
)
def test_wrong_usage(gaggle: Gaggle, service: Service, arguments: list[str]) -> None:
    """Wrong usage ends with exit code 2 before anything is called."""
    assert gaggle(*arguments).code == 2
    assert not service.fake.calls


@pytest.mark.parametrize("command", ["import", "list", "show", "export", "delete", "search"])
def test_help_has_examples(gaggle: Gaggle, command: str) -> None:
    """Every command's help ends with examples."""
    result = gaggle(command, "--help")
    assert result.code == 0
    assert f"gaggle conversations {command}" in " ".join(result.out.split())


def test_failure_without_details() -> None:
    """A status that no service of ours wrote is told by its code."""
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata(), details="no such\nmethod"
    )
    assert str(Failure.of(error)) == "no such method (UNIMPLEMENTED)"
    assert not Failure.of(error).is_transient
