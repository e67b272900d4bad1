"""A subscriber that does with an event what the event says, and writes down each delivery before it does.

The event's data: {"id": ..., "do": "take"}. What it may be told to do is in `Probe`.
"""

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from services.runtime import topics
from services.runtime.callbacks import Outcome, Subscription, TopicEvent
from services.runtime.service import Runtime, Wiring, run
from services.runtime.settings import ServiceSettings

TOPIC = "probe.events"


class ProbeSettings(ServiceSettings):
    """What the probe is told beside the common settings."""

    probe_file: Path
    """Where deliveries are written down, a JSON object a line."""


class Probe:
    """Handles events as told: take, drop, refuse (always), `fail N` (N times, then take), `die` (once, then take)."""

    def __init__(self, file: Path) -> None:
        """`file` is appended to; what an earlier process wrote there counts."""
        self._file = file
        self._seen = Counter(one["id"] for one in deliveries(file) if one["topic"] == TOPIC)

    async def take(self, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        """Take events of the topic."""
        return [self._handle(event) for event in events]

    async def take_dead_letter(self, events: Sequence[TopicEvent]) -> Sequence[Outcome]:
        """Take what was refused."""
        for event in events:
            self._write("dead-letter", event)
        return [Outcome.SUCCESS] * len(events)

    def _handle(self, event: TopicEvent) -> Outcome:
        self._write(event.topic, event)
        body = json.loads(event.data)
        self._seen[body["id"]] += 1
        match str(body["do"]).split():
            case ["drop"]:
                return Outcome.DROP
            case ["refuse"]:
                return Outcome.RETRY
            case ["fail", times] if self._seen[body["id"]] <= int(times):
                return Outcome.RETRY
            case ["die"] if self._seen[body["id"]] == 1:
                os._exit(1)
        self._write("taken", event)
        return Outcome.SUCCESS

    def _write(self, topic: str, event: TopicEvent) -> None:
        try:
            body = json.loads(event.data)
        except ValueError:
            body = {"id": event.data.decode(errors="replace")}
        line = {"topic": topic, "id": body["id"], "bytes": len(event.data), "event_id": event.id}
        with self._file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def deliveries(file: Path) -> list[dict[str, str]]:
    """Read what was written down."""
    if not file.exists():
        return []
    return [json.loads(line) for line in file.read_text().splitlines()]


def build(runtime: Runtime, settings: ProbeSettings) -> Wiring:
    """Put the service together."""
    del runtime
    probe = Probe(settings.probe_file)
    dead = topics.dead_letter_topic(settings.app_id)
    return Wiring(
        servicers=[],
        subscriptions=[
            Subscription(TOPIC, probe.take, dead_letter_topic=dead),
            Subscription(dead, probe.take_dead_letter, raw=True),
        ],
    )


if __name__ == "__main__":
    run("probe", ProbeSettings, build)
