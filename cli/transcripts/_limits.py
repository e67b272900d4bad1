"""The conversation service's limits, checked before anything is sent: a file is stored whole or not at all."""

import re

from cli.transcripts._transcript import Transcript
from gaggle.conversation.v1.message_pb2 import Message

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_APPEND_BYTES = 3 * 1024 * 1024
MAX_APPEND_MESSAGES = 500
_MAX_PARTS = 256
_MAX_NAME_BYTES = 256
_MAX_METADATA_ENTRIES = 64
_MAX_METADATA_BYTES = 16 * 1024

MESSAGE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def check(transcript: Transcript) -> None:
    """Raises TranscriptError for the first message that the service would refuse."""
    for message, place in zip(transcript.messages, transcript.places, strict=True):
        problem = _problem(message)
        if problem:
            raise place.error(problem)


def _problem(message: Message) -> str:
    size = message.ByteSize()
    if size > MAX_MESSAGE_BYTES:
        return f"is {size:,} bytes as a message; at most {MAX_MESSAGE_BYTES:,} can be stored"
    if not 1 <= len(message.content) <= _MAX_PARTS:
        return f"has {len(message.content)} parts of content; 1 to {_MAX_PARTS} can be stored"
    if len(message.name.encode()) > _MAX_NAME_BYTES:
        return f"has a name of {len(message.name.encode())} bytes; at most {_MAX_NAME_BYTES} can be stored"
    metadata_bytes = sum(len(key.encode()) + len(value.encode()) for key, value in message.metadata.items())
    if len(message.metadata) > _MAX_METADATA_ENTRIES or metadata_bytes > _MAX_METADATA_BYTES:
        return f"has metadata of {len(message.metadata)} entries, {metadata_bytes} bytes; too much to be stored"
    return ""
