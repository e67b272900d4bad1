"""The audit service in this process: a real gRPC server, a real PostgreSQL, no sidecar."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from joserfc.jwk import KeySet, OKPKey

from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc, log_service_pb2, log_service_pb2_grpc
from gaggle.conversation.v1 import message_pb2
from services.audit.handlers import LogWriter, TopicLog
from services.audit.indexing import Indexer, IndexPace
from services.audit.owner import ConversationOwner, MessagePage
from services.audit.publishing import EventPublisher
from services.audit.rebuilding import Rebuild
from services.audit.servicer import AUDIT_ACCESS, LOG_ACCESS, AuditServicer, LogServicer
from services.audit.store import AuditStore, Snapshot
from services.audit.tail import LogTail
from services.runtime.callbacks import TopicEvent
from services.runtime.errors import NotFoundError
from services.runtime.hints import Hints
from services.runtime.identity import TokenSigner, Verifier
from services.runtime.pipeline import Pipeline
from services.runtime.service import Exposed, make_server
from services.runtime.telemetry import Metrics, Tracing
from tests.audit.database import BindingStandIn, Database


@dataclass
class Broker:
    """Takes what is published, and says that it is away if told to."""

    published: list[tuple[str, bytes, dict[str, str]]] = field(default_factory=list)
    failure: Exception | None = None

    async def publish(self, pubsub: str, topic: str, data: bytes, metadata: Mapping[str, str] | None = None) -> None:
        """Keep it."""
        assert pubsub == "pubsub"
        if self.failure is not None:
            raise self.failure
        self.published.append((topic, data, dict(metadata or {})))


class OwnerStandIn(ConversationOwner):
    """Conversations as their owner has them, held in this process."""

    def __init__(self) -> None:
        """Own nothing yet."""
        self.texts: dict[tuple[str, str], list[str]] = {}
        self.republished: list[tuple[str, str, int, int]] = []
        self.republishes = 1

    def _snapshot(self, user_id: str, conversation_id: str, incarnation: int = 0) -> Snapshot:
        texts = self.texts[user_id, conversation_id]
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=int(conversation_id[1:] or 0))
        return Snapshot(
            user_id=user_id,
            id=conversation_id,
            incarnation=incarnation,
            revision=len(texts) + 1,
            title=f"title of {conversation_id}",
            metadata={"n": conversation_id},
            created_at=moment.isoformat(),
            updated_at=(moment + timedelta(days=100 - len(texts))).isoformat(),
            last_sequence=len(texts),
            message_count=len(texts),
            max_messages=7,
            ttl_seconds=60.5,
            forked_from_id="c0",
            forked_from_sequence=3,
        )

    async def conversation(self, user_id: str, conversation_id: str, incarnation: int) -> Snapshot:
        """See ConversationOwner."""
        if (user_id, conversation_id) not in self.texts:
            raise NotFoundError("conversation", conversation_id)
        return self._snapshot(user_id, conversation_id, incarnation)

    async def messages(self, user_id: str, conversation_id: str, after_sequence: int) -> MessagePage:
        """See ConversationOwner; two at a time."""
        texts = self.texts[user_id, conversation_id]
        page = [
            message_pb2.Message(
                id=f"m{sequence}",
                sequence=sequence,
                role=message_pb2.ROLE_USER,
                content=[message_pb2.ContentPart(text=message_pb2.TextContent(text=texts[sequence - 1]))],
            )
            for sequence in range(after_sequence + 1, min(after_sequence + 2, len(texts)) + 1)
        ]
        return MessagePage(page, len(texts), more=after_sequence + 2 < len(texts))

    async def users(self) -> AsyncIterator[str]:
        """See ConversationOwner."""
        for user_id in sorted({user_id for user_id, _ in self.texts}):
            yield user_id

    async def snapshots(self, user_id: str) -> AsyncIterator[list[Snapshot]]:
        """See ConversationOwner; one at a time."""
        for owner, conversation_id in sorted(self.texts):
            if owner == user_id:
                yield [self._snapshot(user_id, conversation_id)]

    async def republish(self, user_id: str, conversation_id: str, first: int, last: int) -> int:
        """See ConversationOwner."""
        self.republished.append((user_id, conversation_id, first, last))
        return self.republishes


@dataclass
class Served:
    """The parts of a running audit service."""

    database: Database
    binding: BindingStandIn
    store: AuditStore
    tail: LogTail
    log: TopicLog
    broker: Broker
    owner: OwnerStandIn
    indexer: Indexer
    stub: Any
    log_stub: Any
    signer: TokenSigner
    sync_signer: TokenSigner

    def as_user(self, user_id: str, *roles: str) -> tuple[tuple[str, str], ...]:
        """Give the metadata of a user's call."""
        return (("authorization", f"Bearer {self.signer.sign(user_id, ttl_seconds=600, roles=list(roles))}"),)

    def as_sync(self, user_id: str) -> tuple[tuple[str, str], ...]:
        """Give the metadata of the sync service's call for a user."""
        return (("authorization", f"Bearer {self.sync_signer.sign(user_id, ttl_seconds=600, service='sync')}"),)

    async def take(self, topic: str, *payloads: bytes) -> list[str]:
        """Deliver payloads as a topic would; give the outcomes' names."""
        events = [
            TopicEvent(id=f"ce-{n}-{hash(payload)}", topic=topic, type="", data=payload, content_type="")
            for n, payload in enumerate(payloads)
        ]
        return [outcome.name for outcome in await self.log.take(events)]


@asynccontextmanager
async def serving(database: Database) -> AsyncIterator[Served]:
    """Run the service on a free port."""
    key = OKPKey.generate_key("Ed25519", {"kid": "issuer"})
    sync_key = OKPKey.generate_key("Ed25519", {"kid": "sync"})
    signer, sync_signer = (
        TokenSigner(json.dumps(one.as_dict(private=True)), issuer="gaggle", audience="gaggle")
        for one in (key, sync_key)
    )
    binding, broker, owner, metrics = BindingStandIn(database), Broker(), OwnerStandIn(), Metrics()
    store = AuditStore(binding, "readmodel", index_delay_seconds=0)
    hints = Hints(broker, "pubsub", "log-hints")  # type: ignore[arg-type]
    tail = LogTail(store, hints, poll_seconds=0.05)
    indexer = Indexer(store, owner, IndexPace(poll_seconds=0.02, concurrency=2, lease_seconds=5))
    servicer = AuditServicer(
        store,
        tail,
        EventPublisher(broker, "pubsub"),
        Rebuild(store, owner, indexer, holder="here"),
        heartbeat_seconds=0.2,
    )

    async def keys() -> str:
        return json.dumps(KeySet([key, sync_key]).as_dict(private=False))

    pipeline = Pipeline(
        verifier=Verifier("gaggle", ("gaggle", keys)),
        tracing=Tracing("audit", sample_ratio=0, otlp_endpoint=""),
        metrics=metrics,
        app_api_token="app",
        max_concurrent_calls=100,
        max_streams=100,
        call_timeout_seconds=10,
    )
    pipeline.ready = True
    service = audit_service_pb2.DESCRIPTOR.services_by_name["AuditService"]
    log_service = log_service_pb2.DESCRIPTOR.services_by_name["LogService"]
    log_servicer = LogServicer(store, tail, heartbeat_seconds=0.2)
    exposed = [Exposed(service, servicer, AUDIT_ACCESS), Exposed(log_service, log_servicer, LOG_ACCESS)]
    server, _ = make_server(pipeline, exposed)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(channel)
        log_stub: Any = log_service_pb2_grpc.LogServiceStub(channel)
        log = TopicLog(LogWriter(store, tail.logged), store)
        yield Served(database, binding, store, tail, log, broker, owner, indexer, stub, log_stub, signer, sync_signer)
    await server.stop(None)
