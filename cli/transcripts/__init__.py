"""Transcripts of other tools, read into messages and written back, without loss and without the network.

A format is a `Format`: it recognises a document, reads conversations from it and writes one back. What a message of
ours has no field for is kept in the message's `extra_json`, as the difference between what the format would write
from the fields alone and what the file held. So every format gives back what it was given, message for message, and
one rule proves it.
"""

from cli.transcripts._errors import TranscriptError
from cli.transcripts._formats import FORMATS, format_named, read, write
from cli.transcripts._limits import (
    MAX_APPEND_BYTES,
    MAX_APPEND_MESSAGES,
    MAX_MESSAGE_BYTES,
    MESSAGE_ID,
)
from cli.transcripts._source import Document, Node
from cli.transcripts._transcript import Format, Transcript, Written, dump, keep, kept, restore

__all__ = [
    "FORMATS",
    "MAX_APPEND_BYTES",
    "MAX_APPEND_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "MESSAGE_ID",
    "Document",
    "Format",
    "Node",
    "Transcript",
    "TranscriptError",
    "Written",
    "dump",
    "format_named",
    "keep",
    "kept",
    "read",
    "restore",
    "write",
]
