"""Transcripts read and written back, without a service."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.samples import OBSERVATORY, sample
from cli.transcripts import FORMATS, MAX_MESSAGE_BYTES, Document, read, write
from cli.transcripts._delta import apply, difference, same
from gaggle.conversation.v1.message_pb2 import (
    ROLE_ASSISTANT,
    ROLE_TOOL,
    ROLE_USER,
    ContentPart,
    Message,
    TextContent,
    Thinking,
)

LOCOMO = Path(__file__).parents[3] / "shared" / "data" / "locomo"
PIXEL = base64.b64encode(b"\x89PNG not really").decode()

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def document(value: Any, name: str = "chat.json") -> Document:
    """The value as a JSON file; a list as JSON Lines if the name says so."""
    if name.endswith(".jsonl"):
        return Document(name, "".join(json.dumps(line) + "\n" for line in value).encode())
    return Document(name, json.dumps(value).encode())


def stored(message: Message) -> Message:
    """The message as the service gives it back."""
    copy = Message.FromString(message.SerializeToString())
    copy.sequence = 7
    copy.create_time.seconds = 1_700_000_000
    copy.id = copy.id or "0199aaaa-0000-7000-8000-000000000000"
    return copy


def returned(text: str, name: str = "chat.json") -> Any:
    """What a document holds."""
    return [json.loads(line) for line in text.split("\n") if line] if name.endswith(".jsonl") else json.loads(text)


MESSAGES: dict[str, dict[str, Any]] = {
    "plain": {"role": "user", "content": "Hello"},
    "empty": {"role": "user", "content": ""},
    "developer": {"role": "developer", "content": "Be brief."},
    "system": {"role": "system", "content": "Be long."},
    "named": {"role": "user", "name": "Ada", "content": "It's me."},
    "null-name": {"role": "user", "name": None, "content": "?"},
    "parts": {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
    "one-part": {"role": "user", "content": [{"type": "text", "text": "alone", "cache_control": {"type": "x"}}]},
    "no-parts": {"role": "user", "content": []},
    "string-parts": {"role": "user", "content": ["a", "b"]},
    "image": {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ],
    },
    "odd-base64": {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAA?", "detail": 3}}],
    },
    "audio": {
        "role": "user",
        "content": [{"type": "input_audio", "input_audio": {"data": "UklGRg=="}}],
    },
    "calls": {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "now", "arguments": '{"zone": "UTC" }'}},
            {"id": "b", "type": "function", "function": {"name": "now", "arguments": ""}},
        ],
    },
    "call-and-text": {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "now", "arguments": "not json"}}],
    },
    "call-without-content": {
        "role": "assistant",
        "tool_calls": [{"id": "a", "function": {"name": "now", "arguments": {"zone": "UTC"}}, "index": 0}],
    },
    "custom-call": {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "custom", "custom": {"name": "shell", "input": "ls"}}],
    },
    "old-call": {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
    "old-answer": {"role": "function", "name": "now", "content": "12:00"},
    "answer": {"role": "tool", "tool_call_id": "a", "content": "12:00"},
    "answer-in-parts": {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "12:00"}]},
    "answer-null": {"role": "tool", "tool_call_id": "a", "content": None},
    "answer-with-name": {"role": "tool", "tool_call_id": "a", "name": "now", "content": "12:00"},
    "refusal": {"role": "assistant", "content": None, "refusal": "I can't help with that."},
    "silence": {"role": "assistant", "content": None},
    "absence": {"role": "assistant"},
    "unknown-fields": {
        "role": "assistant",
        "content": "x",
        "annotations": [],
        "id": "msg_1",
        "weight": 0,
        "big": 1e300,
    },
    "bad-id": {"role": "user", "content": "x", "id": "not an id/"},
    "half-character": {"role": "user", "content": "x", "note": "\ud800"},
    "control": {"role": "user", "content": "\x00\x1b[2J\u2028 \U0001f600"},
}


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl"])
def test_openai_message_comes_back(message: dict[str, Any], name: str) -> None:
    """Every shape of message that OpenAI's API knows or knew is exported as it was imported."""
    source = [message, {"role": "user", "content": "and then?"}]
    form, [transcript] = read(document(source, name))
    written = form.write([stored(each) for each in transcript.messages])
    assert same(returned(written.text, name), source)
    assert written.omitted == ()


WHOLES: dict[str, tuple[str, str, Any]] = {
    "openai-list": ("openai", "a.json", [{"role": "user", "content": "x"}]),
    "openai-object": (
        "openai",
        "a.json",
        {"messages": [{"role": "user", "content": "x"}], "tools": [{}]},
    ),
    "openai-lines": ("openai-jsonl", "a.jsonl", [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}]),
    "openai-tuning": ("openai-jsonl", "a.jsonl", [{"messages": [{"role": "user", "content": "x"}], "n": 1}]),
    "sharegpt": ("sharegpt", "a.json", {"id": "s1", "conversations": [{"from": "human", "value": "x"}]}),
    "sharegpt-list": ("sharegpt", "a.json", [{"conversations": [{"from": "gpt", "value": "x", "w": 1}]}]),
    "sharegpt-lines": ("sharegpt", "a.jsonl", [{"conversations": [{"from": "bing", "value": ""}], "system": "s"}]),
    "locomo": (
        "locomo",
        "a.json",
        {
            "id": "d",
            "speakers": ["Ann", "Bo", "Cy"],
            "messages": [
                {"id": "D1:1", "session": 1, "time": "12:05 am on 8 May, 2023", "speaker": "Ann", "text": "x"},
                {"id": "D1:2", "session": "1", "time": "yesterday", "speaker": "Bo", "text": "", "img": ["u"]},
                {"id": "D1:3", "session": None, "speaker": "Cy", "text": "z"},
                {"id": "D1:4", "session": 2, "time": "12:00 pm on 31 June, 2023", "speaker": "Ann", "text": "z"},
            ],
        },
    ),
}


@pytest.mark.parametrize(("name", "file", "value"), WHOLES.values(), ids=WHOLES.keys())
def test_document_comes_back(name: str, file: str, value: Any) -> None:
    """A format is found out from the file, and an export has the same shape and fields around the messages."""
    form, [transcript] = read(document(value, file))
    assert form.name == name
    assert same(returned(write([stored(each) for each in transcript.messages], name).text, file), value)


@given(extra=st.dictionaries(TEXT, JSON, max_size=3), content=TEXT, index=st.integers(0, len(MESSAGES) - 1))
@settings(max_examples=200, deadline=None)
def test_openai_keeps_what_it_does_not_know(extra: dict[str, Any], content: str, index: int) -> None:
    """Whatever members a message has beside those that are understood, the export has them too."""
    known = {"role", "name", "content", "tool_calls", "tool_call_id", "function_call"}
    message = {name: member for name, member in extra.items() if name not in known} | list(MESSAGES.values())[index]
    source = [{"role": "user", "content": content}, message]
    form, [transcript] = read(document(source))
    assert same(json.loads(form.write([stored(each) for each in transcript.messages]).text), source)


@given(made=JSON, wanted=JSON)
@settings(max_examples=500, deadline=None)
def test_difference_leads_from_one_value_to_the_other(made: Any, wanted: Any) -> None:
    """A difference of two JSON values turns the first into the second, and survives being JSON itself."""
    delta = difference(made, wanted)
    if delta is None:
        assert same(made, wanted)
    else:
        assert same(apply(made, json.loads(json.dumps(delta))), wanted)


def test_difference_is_small() -> None:
    """What a message has in common with its source is not stored twice."""
    long = "x" * 10_000
    source = [{"role": "user", "content": [{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]}]
    _, [transcript] = read(document(source))
    assert len(transcript.messages[0].extra_json) < 200


def test_fields_are_understood() -> None:
    """A tool call, its answer and an image become typed content, not raw JSON."""
    _, [transcript] = read(document([MESSAGES["call-and-text"], MESSAGES["answer"], MESSAGES["image"]]))
    call, answer, image = transcript.messages
    assert (call.role, call.content[1].tool_request.call.name) == (ROLE_ASSISTANT, "now")
    assert (answer.role, answer.content[0].tool_response.id) == (ROLE_TOOL, "a")
    assert answer.content[0].tool_response.result.content[0].text.text == "12:00"
    assert image.content[1].image.data == base64.b64decode(PIXEL)
    assert image.content[1].image.mime_type == "image/png"
    assert image.content[2].image.uri == "https://example.org/a.png"


def test_ids_are_kept_where_they_can_be_and_once() -> None:
    """A message keeps an id that the service takes; a second message of the same id gets one of the service's."""
    source = [{"role": "user", "content": "x", "id": identity} for identity in ("m1", "m1", "m/2")]
    _, [transcript] = read(document(source))
    assert [message.id for message in transcript.messages] == ["m1", "", ""]


def test_locomo_fields() -> None:
    """The first speaker is the user, the second the assistant; session, time and name have fields of their own."""
    _, [transcript] = read(document(WHOLES["locomo"][2]))
    first, second, third, _ = transcript.messages
    assert [first.role, second.role, third.role] == [ROLE_USER, ROLE_ASSISTANT, ROLE_USER]
    assert (first.name, first.metadata["session"]) == ("Ann", "1")
    assert first.original_time.ToJsonString() == "2023-05-08T00:05:00Z"
    assert not second.HasField("original_time")


def test_other_formats_leave_out_what_they_cannot_say() -> None:
    """An export to a format without a form for some content says what it left out."""
    message = Message(role=ROLE_ASSISTANT)
    message.content.extend([ContentPart(thinking=Thinking(thinking="hm")), ContentPart(text=TextContent(text="So."))])
    for name in FORMATS:
        written = write([stored(message)], name)
        assert written.omitted == ("thinking",)
        assert "So." in written.text


def test_every_conversation_of_a_file_is_read() -> None:
    """A file of many conversations gives as many transcripts, in order."""
    lines = [{"messages": [{"role": "user", "content": str(number)}]} for number in range(20)]
    _, transcripts = read(document(lines, "tuning.jsonl"))
    assert [transcript.messages[0].content[0].text.text for transcript in transcripts] == list(map(str, range(20)))


def test_byte_order_mark_and_separators_are_no_fault() -> None:
    """A byte order mark, blank lines, Windows line ends and U+2028 within a string are read as what they are."""
    lines = '\ufeff{"role": "user", "content": "a\u2028b"}\r\n\r\n{"role": "user", "content": "c"}\r\n'
    _, [transcript] = read(Document("a.jsonl", lines.encode()))
    assert [message.content[0].text.text for message in transcript.messages] == ["a\u2028b", "c"]


def test_message_of_exactly_the_limit_is_taken() -> None:
    """A message of 1 MiB is read, one byte more is refused."""
    _, [empty] = read(document([{"role": "user", "content": "x" * 1_000_000}]))
    room = MAX_MESSAGE_BYTES - empty.messages[0].ByteSize()
    _, [full] = read(document([{"role": "user", "content": "x" * (1_000_000 + room)}]))
    assert full.messages[0].ByteSize() == MAX_MESSAGE_BYTES


def test_sample_is_long_and_comes_back() -> None:
    """The sample that ships with the command line is a long conversation with tool calls, and keeps every byte."""
    data = sample(OBSERVATORY).read_bytes()
    form, [transcript] = read(Document(OBSERVATORY, data))
    assert len(transcript.messages) >= 300
    assert sum(part.HasField("tool_request") for message in transcript.messages for part in message.content) >= 30
    assert form.write(transcript.messages).text.encode() == data


@pytest.mark.skipif(not LOCOMO.is_dir(), reason="the LoCoMo dialogues are not here")
@pytest.mark.parametrize("number", [26, 30, 41, 43, 47])
def test_locomo_comes_back(number: int) -> None:
    """A dialogue of hundreds of turns is exported equal, message for message."""
    file = LOCOMO / f"{number}.json"
    form, [transcript] = read(Document.load(file))
    written = form.write([stored(message) for message in transcript.messages])
    assert same(json.loads(written.text), json.loads(file.read_text()))
