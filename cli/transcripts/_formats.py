"""Which formats there are, and which one a document is in."""

from cli.transcripts import _limits
from cli.transcripts._locomo import LOCOMO
from cli.transcripts._openai import OPENAI, OPENAI_JSONL
from cli.transcripts._sharegpt import SHAREGPT
from cli.transcripts._source import Document
from cli.transcripts._transcript import Format, Transcript, Written
from gaggle.conversation.v1.message_pb2 import Message

FORMATS: dict[str, Format] = {
    # Asked in this order: the first that recognises a document reads it.
    each.name: each
    for each in (LOCOMO, SHAREGPT, OPENAI, OPENAI_JSONL)
}


def format_named(name: str) -> Format:
    """The format. Raises KeyError, whose text lists those there are."""
    try:
        return FORMATS[name]
    except KeyError:
        raise KeyError(f"there is no format {name!r}; there are {', '.join(FORMATS)}") from None


def read(document: Document, format_name: str | None = None) -> tuple[Format, list[Transcript]]:
    """Every conversation of the document, checked against the service's limits.

    Raises:
        TranscriptError: the file is faulty, too large in a place, or of no known format.
        KeyError: there is no format of that name.
    """
    try:
        chosen = format_named(format_name) if format_name else _recognise(document)
        transcripts = chosen.read(document)
    except RecursionError:
        raise document.error("nested too deeply") from None
    for transcript in transcripts:
        _limits.check(transcript)
    return chosen, transcripts


def write(messages: list[Message], format_name: str) -> Written:
    """A conversation in a format; what was imported from it comes back message for message. Raises KeyError."""
    return format_named(format_name).write(messages)


def _recognise(document: Document) -> Format:
    if not document.text.strip():
        raise document.error("is empty")
    for each in FORMATS.values():
        if each.recognises(document):
            return each
    raise document.error(f"is of no known format ({', '.join(FORMATS)}); name one with --format")
