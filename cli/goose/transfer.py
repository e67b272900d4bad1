"""goose's session export into the mesh and out of it."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

from cli.errors import CommandError, Refused
from cli.goose.messages import GooseMessage, read_message, write_messages
from cli.goose.service import Mesh
from cli.goose.sessions import Row, export_of, extra_of_export, fields_of_export, new_session_id
from cli.transcripts import MAX_MESSAGE_BYTES, Document, Node
from gaggle.agent.v1 import agent_service_pb2 as agent_api
from gaggle.agent.v1.session_pb2 import Session, UsageTotals
from gaggle.conversation.v1.message_pb2 import Message

IMPORT_KEY = "goose.import"


@dataclass(frozen=True)
class SessionFile:
    """A session export that was read and checked."""

    export: Row
    messages: list[Message]

    @property
    def digest(self) -> str:
        """SHA-256 of its content, white space and the order of members apart."""
        text = json.dumps(self.export, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def read_session(document: Document) -> SessionFile:
    """Read a session export. Raises TranscriptError with line and column."""
    root = document.root
    export = root.object()
    for name in ("working_dir", "created_at"):
        root.field(name).text()
    if not (root.has("name") or root.has("description")):
        raise root.error('must have "name"')
    for name in ("usage", "accumulated_usage", "extension_data", "recipe", "user_recipe_values", "model_config"):
        found = root.optional(name)
        if found is not None and found.value is not None:
            found.object()
    conversation = root.optional("conversation")
    nodes = conversation.elements() if conversation is not None and conversation.value is not None else iter(())
    return SessionFile(export, list(_messages(nodes)))


def _messages(nodes: Iterator[Node]) -> Iterator[Message]:
    taken: set[str] = set()
    for node in nodes:
        role = node.field("role")
        if role.text() not in {"user", "assistant"}:
            raise role.error("must be user or assistant")
        created = node.field("created")
        if not isinstance(created.value, int) or isinstance(created.value, bool):
            raise created.error("must be a whole number, of seconds since 1970")
        for part in node.field("content").elements():
            part.field("type").text()
        message = read_message(node.object(), taken=taken)
        if (size := message.ByteSize()) > MAX_MESSAGE_BYTES:
            raise node.error(f"is {size:,} bytes as a message; at most {MAX_MESSAGE_BYTES:,} can be stored")
        yield message


async def import_session(mesh: Mesh, file: SessionFile, session_id: str = "") -> tuple[str, int]:
    """Store a session, once however often it is imported; gives its id, and how many messages were new.

    Raises Refused if the id is another session's, and as Client.call.
    """
    name = session_id or new_session_id(file.export.get("id")) or f"goose-{file.digest[:32]}"
    fields = fields_of_export(file.export)
    created = await mesh.create_conversation(name, fields.name, {IMPORT_KEY: file.digest})
    stored = last = 0
    if not created:
        there = await mesh.conversation(name)
        if there is None:
            raise Refused(f"{name} was deleted less than seven days ago: choose another id with --session.")
        stored, last = int(there.message_count), int(there.last_sequence)
        if there.metadata.get(IMPORT_KEY) != file.digest:
            raise Refused(f"There is another session {name}: choose another id with --session.")
        stored = min(stored, len(file.messages))
    await mesh.append(name, last, file.messages[stored:])
    session = await mesh.create_session(
        agent_api.CreateSessionRequest(
            session_id=name,
            name=fields.name,
            working_dir=fields.working_dir,
            session_type=fields.session_type,
            conversation_id=name,
            extra_json=extra_of_export(file.export),
            metadata={IMPORT_KEY: file.digest},
        )
    )
    session = session or await mesh.session(name)
    if session is None or session.metadata.get(IMPORT_KEY) != file.digest:
        raise Refused(f"There is another session {name}: choose another id with --session.")
    if session.accumulated_usage == UsageTotals() and session.turn_count == 0:
        await mesh.import_usage(session, [], fields.accumulated_usage, fields.last_usage)
    return name, len(file.messages) - stored


async def export_session(mesh: Mesh, session_id: str) -> Row:
    """The session as goose exports it. Raises CommandError, and as Client.call."""
    session = await mesh.session(session_id)
    conversation_id = session.conversation_id if session else session_id
    conversation = await mesh.conversation(conversation_id) if conversation_id else None
    if session is None:
        if conversation is None:
            raise CommandError(f"There is no session {session_id}, nor a conversation of that id.")
        # A conversation that no session has counted is one of a session that nothing is known of.
        session = Session(id=session_id, name=conversation.title, session_type="user")
        session.create_time.CopyFrom(conversation.create_time)
    messages = await mesh.messages(conversation_id) if conversation is not None else []
    written: list[GooseMessage] = list(write_messages(messages))
    export = export_of(session, written)
    if not export.get("updated_at"):
        latest = conversation.update_time if conversation is not None else session.update_time
        export["updated_at"] = latest.ToJsonString()
    return export


def text_of(export: Row) -> str:
    """As a file holds it."""
    text = json.dumps(export, ensure_ascii=False, indent=2)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(export, indent=2)
    return text + "\n"


__all__ = ["SessionFile", "export_session", "import_session", "read_session", "text_of"]
