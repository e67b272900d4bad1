"""Histories of conversations, as their owner would publish them, for tests of the log."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

_START = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass
class ConversationHistory:
    """One conversation's events, revision by revision, and what the read model should then say."""

    user_id: str
    id: str
    incarnation: int = 0
    revision: int = 0
    title: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    last_sequence: int = 0
    message_count: int = 0
    deleted: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)

    def create(self, title: str) -> None:
        """Revision 1."""
        self.title = title
        self._tell({"goose.conversation.created": {"title": title}})

    def append(self, received: int, sent: int) -> None:
        """Append messages: at most one event for each of the two topics."""
        first = self.last_sequence + 1
        self.last_sequence += received + sent
        self.message_count += received + sent
        told = {}
        for topic, count, start in (
            ("goose.agent.message.received", received, first),
            ("goose.agent.message.sent", sent, first + received),
        ):
            if count:
                told[topic] = {
                    "conversationId": self.id,
                    "messages": [{"id": f"m{n}", "sequence": str(n)} for n in range(start, start + count)],
                    "firstSequence": str(first),
                    "lastSequence": str(self.last_sequence),
                }
        self._tell(told)

    def rename(self, title: str) -> None:
        """Change title and metadata."""
        self.title, self.metadata = title, {"title": title}
        self._update(["title", "metadata"])

    def truncate(self, drop: int) -> None:
        """Drop the newest messages."""
        drop = min(drop, self.message_count)
        self.message_count -= drop
        gone = {"first": str(self.last_sequence - drop + 1), "last": str(self.last_sequence)} if drop else None
        self._update(["truncated"], truncated=gone)

    def delete(self) -> None:
        """Delete it; nothing of its content stays."""
        self.deleted = True
        self.title, self.metadata, self.message_count = "", {}, 0
        self._tell({"goose.conversation.deleted": {"cause": "deleted"}})

    def _update(self, changed: list[str], truncated: dict[str, str] | None = None) -> None:
        data: dict[str, Any] = {"changed": changed, "title": self.title, "metadata": self.metadata}
        # proto3 JSON leaves out what is 0, empty or absent.
        data |= {"truncated": truncated, "lastSequence": str(self.last_sequence)} if truncated else {}
        if self.message_count:
            data["messageCount"] = str(self.message_count)
        if self.last_sequence:
            data["lastSequence"] = str(self.last_sequence)
        self._tell({"goose.conversation.updated": {name: value for name, value in data.items() if value}})

    def _tell(self, payloads: dict[str, dict[str, Any]]) -> None:
        self.revision += 1
        for part, (topic, data) in enumerate(payloads.items(), start=1):
            self.events.append(
                {
                    "event_id": f"conversation.{self.id}.{self.incarnation}.{self.revision}.{part}",
                    "topic": topic,
                    "event_type": topic,
                    "entity_type": "conversation",
                    "entity_id": self.id,
                    "user_id": self.user_id,
                    "timestamp": (_START + timedelta(seconds=self.revision)).isoformat(),
                    "revision": self.revision,
                    "incarnation": self.incarnation,
                    "part": part,
                    "parts": len(payloads),
                    "data": data,
                    "metadata": {},
                }
            )
