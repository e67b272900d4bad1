"""What `gaggle watch` shows a person."""

from google.protobuf import json_format

from cli.watch.rendering import line
from gaggle.sync.v1.sync_service_pb2 import WatchResponse


def test_a_line_is_harmless_and_says_what_happened() -> None:
    """An event is one line with its type, its thing and its words, whatever the words would do to a terminal."""
    event = {
        "eventType": "task.created",
        "entityType": "task",
        "entityId": "t-1",
        "timestamp": "2031-01-01T09:00:00Z",
        "data": {"title": "Buy [red]milk[/]\n\x1b[31mnow"},
    }
    text = line(json_format.ParseDict({"position": "7", "event": event}, WatchResponse())).plain
    assert "task.created" in text
    assert "task t-1" in text
    assert "Buy [red]milk[/] \N{REPLACEMENT CHARACTER}[31mnow" in text
    assert "\n" not in text
    assert "\x1b" not in text


def test_an_event_without_words() -> None:
    """An event of another application that says nothing of itself is shown by its type alone."""
    event = {"eventType": "x.y", "entityType": "x", "entityId": "1"}
    response = json_format.ParseDict({"event": event}, WatchResponse())
    assert line(response).plain.rstrip().endswith("x 1")
