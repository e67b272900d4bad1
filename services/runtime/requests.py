"""The request_id ledger: the same request has one effect and one answer.

A row is written in the transaction of the change, only if there is none, and lives 25 hours. It holds the hash of the
request and the ids, numbers and times of the answer, never text: what text an answer needs comes from the request,
which is the same.
"""

import hashlib
import re

from google.protobuf.message import Message

from gaggle.common.v1 import error_reason_pb2
from gaggle.runtime.state.v1 import document_pb2
from services.runtime.errors import InvalidArgumentError
from services.runtime.keys import user_part
from services.runtime.state import Item, Put

TTL_SECONDS = 25 * 3600
_PATTERN = re.compile(r"[A-Za-z0-9._-]{1,64}")


def valid_id(text: str) -> bool:
    """Tell whether a caller's own id may be used: [A-Za-z0-9._-]{1,64}."""
    return _PATTERN.fullmatch(text) is not None


def row_key(user_id: str, request_id: str) -> str:
    """Key of a request's row."""
    return f"req:{user_part(user_id)}:{request_id}"


def body_hash(method: str, request: Message) -> bytes:
    """SHA-256 of method and deterministically serialized request."""
    digest = hashlib.sha256(method.encode() + b"\0")
    digest.update(request.SerializeToString(deterministic=True))
    return digest.digest()


def first_answer(item: Item | None, expected_hash: bytes) -> bytes | None:
    """Give the answer that a row holds, None if there is no row.

    Raises InvalidArgumentError, REQUEST_ID_REUSED, if it was for another request.
    """
    if item is None:
        return None
    row = document_pb2.RequestRow.FromString(item.value)
    if row.body_hash != expected_hash:
        raise InvalidArgumentError(
            {"request_id": "was used with another request; take a fresh one"},
            reason=error_reason_pb2.ERROR_REASON_REQUEST_ID_REUSED,
        )
    return row.answer


def new_row(key: str, expected_hash: bytes, answer: bytes) -> Put:
    """Make the write that records an answer."""
    row = document_pb2.RequestRow(body_hash=expected_hash, answer=answer)
    return Put(key, row.SerializeToString(), create=True, ttl_seconds=TTL_SECONDS)
