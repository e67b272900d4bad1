"""Faulty transcripts, and what is said of them."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.transcripts import MAX_MESSAGE_BYTES, Document, TranscriptError, read

FAULTS: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("  \n", "chat.json:1:1: is empty"),
    "no-json": ("hello", "chat.json:1:1: not JSON: expecting value"),
    "missing-comma": ('[\n  {"role": "user" "content": ""}\n]', "chat.json:2:19: not JSON: expecting ',' delimiter"),
    "cut-off": ('[{"role": "user", "content": "ab', "chat.json:1:30: not JSON: unterminated string starting at"),
    "not-utf8": (b'[\n{"role": "\xff"}]', "chat.json:2:11: not UTF-8 (byte 0xff)"),
    "nan": ('[{"role": "user", "content": "NaN",\n "x": NaN}]', "chat.json:2:7: not JSON: NaN is no JSON value"),
    "too-deep": ("[" * 100_000, "chat.json:1:1: nested too deeply"),
    "unknown": ('{"what": 1}', "chat.json:1:1: is of no known format"),
    "no-messages": ('{"messages": []}', "chat.json:1:14: messages: has no messages"),
    "no-list": ('{"messages":\n  {}}', "chat.json:2:3: messages: must be an array, is an object"),
    "no-object": ('[{"role": "user"}, 7]', "chat.json:1:20: [1]: must be an object, is a number"),
    "no-role": ('[{"role": "user"},\n {"content": ""}]', 'chat.json:2:2: [1]: must have "role"'),
    "bad-role": (
        '{"messages": [\n  {"role": "user", "content": "{\\"role\\": 1}"},\n  {"content": "", "role": "owner"}\n]}',
        "chat.json:3:27: messages[1].role: must be one of user, assistant, system, developer, tool, function",
    ),
    "twice-named": ('[{"role": "user", "role": 3}]', "chat.json:1:27: [0].role: must be one of user"),
    "bad-content": (
        '[{"role": "user", "content": 3}]',
        "chat.json:1:30: [0].content: must be a string, an array of parts, or null",
    ),
    "bad-part": (
        '[{"role": "user", "content": [{"type": "text"}]}]',
        'chat.json:1:31: [0].content[0]: must have "text"',
    ),
    "bad-call": (
        '[{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": null}}]}]',
        "chat.json:1:72: [0].tool_calls[0].function.name: must be a string, is null",
    ),
    "half-character": (
        '[{"role": "user", "content": "\\ud800"}]',
        "chat.json:1:30: [0].content: holds half of a surrogate pair",
    ),
    "lines": (
        '{"role": "user", "content": ""}\n\n{"role": "user", "content": [1]}\n',
        "chat.json:3:30: content[0]: must be an object, is a number",
    ),
    "lines-no-json": ('{"role": "user", "content": ""}\n{"role" "user"}\n', "chat.json:2:9: not JSON: expecting ':'"),
    "sharegpt-from": (
        '{"conversations": [{"from": "human", "value": ""}, {"from": "ghost", "value": ""}]}',
        "chat.json:1:61: conversations[1].from: must be one of human",
    ),
    "sharegpt-value": (
        '[{"conversations": [{"from": "gpt", "value": null}]}]',
        "chat.json:1:46: [0].conversations[0].value: must be a string, is null",
    ),
    "locomo-speaker": (
        '{"speakers": ["A", "B"], "messages": [\n{"speaker": "C", "text": ""}]}',
        "chat.json:2:13: messages[0].speaker: must be one of the speakers, A, B",
    ),
    "long-name": (
        json.dumps([{"role": "user", "name": "n" * 257, "content": ""}]),
        "chat.json:1:2: [0]: has a name of 257 bytes; at most 256 can be stored",
    ),
    "large": (
        json.dumps([{"role": "user", "content": "x" * (MAX_MESSAGE_BYTES - 5)}]),
        "chat.json:1:2: [0]: is 1,048,5",
    ),
    "many-parts": (
        json.dumps([{"role": "user", "content": ["x"] * 257}]),
        "chat.json:1:2: [0]: has 257 parts of content; 1 to 256 can be stored",
    ),
    "odd-name": (
        '{"messages": [{"role": "user", "content": [{"type": 1}]}]}',
        "chat.json:1:53: messages[0].content[0].type",
    ),
}


@pytest.mark.parametrize(("text", "told"), FAULTS.values(), ids=FAULTS.keys())
def test_fault_is_told_with_its_place(text: str | bytes, told: str) -> None:
    """A faulty file is refused with file, line and column, and the path of the value that is wrong."""
    with pytest.raises(TranscriptError) as caught:
        read(Document("chat.json", text.encode() if isinstance(text, str) else text))
    assert str(caught.value).startswith(told)


def test_named_format_is_believed() -> None:
    """With a format named, the file is judged by it, whatever it looks like."""
    with pytest.raises(TranscriptError, match='must have "conversations"'):
        read(Document("chat.json", b'[{"role": "user", "content": ""}]'), "sharegpt")
    with pytest.raises(KeyError, match="there are locomo, sharegpt, openai, openai-jsonl"):
        read(Document("chat.json", b"[]"), "word")


@given(
    before=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=10), max_size=4),
    indent=st.sampled_from([None, 0, 1, 4]),
)
def test_place_is_that_of_the_value(before: list[str], indent: int | None) -> None:
    """Line and column lead to the very value, whatever comes before it and however the file is laid out."""
    messages = [{"role": "user", "content": text, "x": [text, {text: text}]} for text in before]
    text = json.dumps({"messages": [*messages, {"role": "XX", "content": ""}]}, indent=indent, ensure_ascii=False)
    with pytest.raises(TranscriptError) as caught:
        read(Document("chat.json", text.encode()))
    line = text.split("\n")[caught.value.line - 1]
    assert line[caught.value.column - 1 :].startswith('"XX"')
    assert caught.value.path == f"messages[{len(before)}].role"


@given(data=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No file, however broken, ends in anything but a transcript or a fault with its place."""
    with contextlib.suppress(TranscriptError):
        read(Document("chat.json", data))
