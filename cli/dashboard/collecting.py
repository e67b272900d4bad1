"""Gathers what the page shows: from the supervisor, the services' metrics, the log of events, and files."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Awaitable
from datetime import UTC, datetime
from typing import Any, TypeVar

import grpc
import httpx
import yaml
from google.protobuf import json_format
from google.protobuf.duration_pb2 import Duration

from cli.channels import open_channel
from cli.dashboard import metrics
from cli.dashboard.masking import Masker
from cli.dashboard.metrics import Series
from cli.errors import CommandError
from cli.mesh import control
from cli.mesh.data import DataDirectory
from cli.mesh.description import MeshDescription, ReplicaDescription
from cli.mesh.keys import sign_token
from cli.mesh.secrets import read_secrets
from gaggle.audit.v1 import audit_service_pb2, audit_service_pb2_grpc
from gaggle.operations.v1 import operations_service_pb2 as operations_api
from gaggle.operations.v1 import operations_service_pb2_grpc
from gaggle.reminder.v1 import reminder_service_pb2, reminder_service_pb2_grpc

REFRESH_SECONDS = 2.0
_CALL_SECONDS = 3.0
_LOADED_SECONDS = 15.0
_TOKEN_SECONDS = 600
_EVENTS = 40
_REMINDERS = 25
_REMINDER_HORIZON_SECONDS = 6 * 3600
_USER = "dashboard"
_LEVEL = "LOG_LEVEL_"

T = TypeVar("T")


class Collector:
    """Looks at the mesh of a data directory. What can't be had is left out, and `problems` says so."""

    def __init__(self, data: DataDirectory) -> None:
        """Nothing is asked yet."""
        self._data = data
        self._series: dict[str, Series] = {}
        # Sidecars ask for it where one is set.
        token = os.environ.get("DAPR_API_TOKEN")
        headers = {"dapr-api-token": token} if token else {}
        self._http = httpx.AsyncClient(timeout=_CALL_SECONDS, trust_env=False, headers=headers)
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._loaded: dict[str, list[str]] = {}
        self._loaded_at = float("-inf")
        self._levels: dict[str, str] = {}
        self._state: dict[str, Any] = {}
        self._collected_at = float("-inf")
        self._collecting = asyncio.Lock()

    async def close(self) -> None:
        """Closes connections."""
        await self._http.aclose()
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))

    async def state(self) -> dict[str, Any]:
        """Everything but logs, at most two seconds old, however many look."""
        async with self._collecting:
            if time.monotonic() - self._collected_at >= REFRESH_SECONDS * 0.9:
                self._state = await self._collect()
                self._collected_at = time.monotonic()
        return self._state

    async def _collect(self) -> dict[str, Any]:
        problems: list[str] = []
        at = datetime.now(UTC).isoformat(timespec="seconds")
        try:
            mesh = MeshDescription.load(self._data.mesh_file)
            status = await asyncio.to_thread(control.ask, self._data.control_socket, {"command": "status"})
        except CommandError as error:
            return {"at": at, "state": "down", "data": str(self._data.path), "problems": [str(error)]}
        replicas = {one.name: one for service in mesh.services.values() for one in service.replicas}
        events, reminders, *_ = await asyncio.gather(
            self._part(problems, "events", self._events(mesh)),
            self._part(problems, "reminders", self._reminders(mesh)),
            self._scrape(replicas),
            self._seldom(replicas),
        )
        masker = Masker(read_secrets(self._data))
        services = [self._service(row) for row in status["services"]]
        return {
            "at": at,
            "state": status["state"],
            "data": status["data"],
            "app_id_suffix": status["app_id_suffix"],
            "component_set": mesh.component_set,
            "broker": mesh.broker,
            "services": services,
            "infrastructure": [_infrastructure(row) for row in status["infrastructure"]],
            "totals": _totals(services),
            "components": [self._component(one, masker) for one in _documents(mesh.components.glob("*.yaml"))],
            "configurations": [
                {"service": path.stem, "yaml": masker.text(yaml.safe_dump(masker.document(one), sort_keys=False))}
                for path in sorted(self._data.configurations.glob("*.yaml"))
                for one in _documents([path])
            ],
            "events": masker.document(events or []),
            "reminders": reminders or [],
            "logs": sorted(path.stem for path in self._data.logs.glob("*.log")),
            "problems": problems,
        }

    async def set_level(self, replica: str, level: str) -> str:
        """Changes what a service's process logs; gives the level that it had.

        Raises:
            CommandError: there is no such process, or no such level, or it could not be asked.
        """
        mesh = MeshDescription.load(self._data.mesh_file)
        replicas = {one.name: one for service in mesh.services.values() for one in service.replicas}
        if replica not in replicas:
            raise CommandError(f"The mesh has no service process {replica!r}.")
        try:
            number = operations_api.LogLevel.Value(f"{_LEVEL}{level.upper()}")
        except ValueError as error:
            raise CommandError(f"{level!r} is no level.") from error
        stub: Any = operations_service_pb2_grpc.OperationsServiceStub(self._channel(replicas[replica]))
        request = operations_api.SetLogLevelRequest(level=number)
        try:
            answer = await stub.SetLogLevel(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise CommandError(f"{replica} did not take it: {error.details()}") from error
        self._levels[replica] = level
        self._collected_at = float("-inf")
        return _level(answer.previous_level)

    # -- the parts

    async def _part(self, problems: list[str], name: str, work: Awaitable[T]) -> T | None:
        try:
            return await work
        except grpc.aio.AioRpcError as error:
            problems.append(f"{name}: {error.code().name} {error.details()}")
        except (httpx.HTTPError, CommandError, OSError) as error:
            problems.append(f"{name}: {error}")
        return None

    async def _events(self, mesh: MeshDescription) -> list[dict[str, Any]]:
        if "audit" not in mesh.services:
            return []
        stub: Any = audit_service_pb2_grpc.AuditServiceStub(self._channel(mesh.services["audit"].replicas[0]))
        request = audit_service_pb2.ListEventsRequest(page_size=_EVENTS, descending=True)
        answer = await stub.ListEvents(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
        return [
            {
                "position": entry.position,
                "time": entry.event.timestamp.ToJsonString(),
                "type": entry.event.event_type,
                "entity": f"{entry.event.entity_type} {entry.event.entity_id}".strip(),
                "user": entry.event.user_id,
                "revision": entry.event.revision,
                "lag_ms": round((entry.log_time.ToNanoseconds() - entry.event.timestamp.ToNanoseconds()) / 1e6, 1),
                "trace": entry.event.metadata.get("traceparent", "")[3:35],
                "data": json_format.MessageToDict(entry.event.data),
            }
            for entry in answer.entries
        ]

    async def _reminders(self, mesh: MeshDescription) -> list[dict[str, Any]]:
        if "reminder" not in mesh.services:
            return []
        stub: Any = reminder_service_pb2_grpc.ReminderServiceStub(self._channel(mesh.services["reminder"].replicas[0]))
        request = reminder_service_pb2.ListDueRemindersRequest(
            horizon=Duration(seconds=_REMINDER_HORIZON_SECONDS), page_size=_REMINDERS
        )
        answer = await stub.ListDueReminders(request, metadata=self._metadata(), timeout=_CALL_SECONDS)
        return [
            {
                "user": one.user_id,
                "title": one.reminder.title,
                "task": one.reminder.task_id,
                "remind_at": one.reminder.remind_at.ToJsonString(),
                "due_at": one.reminder.due_at.ToJsonString() if one.reminder.HasField("due_at") else "",
                "occurrence": one.reminder.occurrence,
            }
            for one in answer.reminders
        ]

    async def _scrape(self, replicas: dict[str, ReplicaDescription]) -> None:
        async def one(name: str, address: str) -> None:
            with contextlib.suppress(httpx.HTTPError):
                answer = await self._http.get(f"http://{address}/metrics")
                reading = await asyncio.to_thread(metrics.read, answer.text, metrics.now())
                self._series.setdefault(name, Series()).add(reading)

        await asyncio.gather(*(one(name, replica.metrics) for name, replica in replicas.items()))

    async def _read_levels(self, replicas: dict[str, ReplicaDescription]) -> None:
        async def one(replica: ReplicaDescription) -> None:
            stub: Any = operations_service_pb2_grpc.OperationsServiceStub(self._channel(replica))
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.GetLogLevel(
                    operations_api.GetLogLevelRequest(), metadata=self._metadata(), timeout=_CALL_SECONDS
                )
                self._levels[replica.name] = _level(answer.level)

        await asyncio.gather(*map(one, replicas.values()))

    async def _seldom(self, replicas: dict[str, ReplicaDescription]) -> None:
        """Ask for what seldom changes, seldom: each question to a service is a line in its log."""
        if time.monotonic() - self._loaded_at >= _LOADED_SECONDS:
            self._loaded_at = time.monotonic()
            await asyncio.gather(self._read_levels(replicas), self._look_loaded(replicas))

    async def _look_loaded(self, replicas: dict[str, ReplicaDescription]) -> None:
        """Ask each sidecar what it has loaded."""
        loaded: dict[str, list[str]] = {}

        async def one(name: str, address: str) -> None:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = await self._http.get(f"http://{address}/v1.0/metadata")
                for component in answer.json().get("components", []):
                    loaded.setdefault(component["name"], []).append(name)

        await asyncio.gather(*(one(name, replica.sidecar_http) for name, replica in replicas.items()))
        self._loaded = loaded

    # -- shapes

    def _service(self, row: dict[str, Any]) -> dict[str, Any]:
        series = self._series.get(row["name"])
        kept = ("name", "service", "app_id", "address", "sidecar_grpc", "state", "sidecar_state", "pid", "sidecar_pid",
                "restarts", "sidecar_restarts", "memory_bytes", "sidecar_memory_bytes")  # fmt: skip
        return {
            **{name: row[name] for name in kept},
            "level": self._levels.get(row["name"], ""),
            "metrics": series.shown() if series is not None else {},
        }

    def _component(self, document: dict[str, Any], masker: Masker) -> dict[str, Any]:
        spec = document.get("spec", {})
        name = document.get("metadata", {}).get("name", "")
        return {
            "name": name,
            "kind": document.get("kind", ""),
            "type": spec.get("type", ""),
            "version": spec.get("version", ""),
            "scopes": document.get("scopes", []),
            "loaded": sorted(self._loaded.get(name, [])),
            "yaml": masker.text(yaml.safe_dump(masker.document(document), sort_keys=False)),
        }

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        token = sign_token(self._data, _USER, roles=["admin"], ttl_seconds=_TOKEN_SECONDS)
        return (("authorization", f"Bearer {token}"),)

    def _channel(self, replica: ReplicaDescription) -> grpc.aio.Channel:
        if replica.address not in self._channels:
            options = (("grpc.max_reconnect_backoff_ms", 1_000),)
            self._channels[replica.address] = open_channel(
                replica.address, authority=replica.authority, options=options
            )
        return self._channels[replica.address]


def _documents(paths: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for path in sorted(paths):
        with contextlib.suppress(OSError, yaml.YAMLError):
            found += [one for one in yaml.safe_load_all(path.read_text()) if isinstance(one, dict)]
    return found


def _infrastructure(row: dict[str, Any]) -> dict[str, Any]:
    # A connection string is nobody's business here.
    address = "socket" if "://" in row["address"] else row["address"]
    return {**row, "address": address}


def _totals(services: list[dict[str, Any]]) -> dict[str, Any]:
    shown = [one["metrics"] for one in services if one["metrics"]]
    lags = [one["lag_p99_ms"] for one in shown if one.get("lag_p99_ms") is not None]
    slowest = [one["p99_ms"] for one in shown if one.get("p99_ms") is not None]
    overdue = [one["reminders_overdue"] for one in shown if one.get("reminders_overdue") is not None]
    lateness = [one["lateness_p99_ms"] for one in shown if one.get("lateness_p99_ms") is not None]
    tokens: dict[str, float] = {}
    for one in shown:
        for kind, count in one.get("tokens", {}).items():
            tokens[kind] = tokens.get(kind, 0) + count
    return {
        "calls_per_second": metrics.total(shown, "calls_per_second"),
        "faults_per_second": metrics.total(shown, "faults_per_second"),
        "events_per_second": metrics.total(shown, "events_per_second"),
        "outbox_pending": metrics.total(shown, "outbox_pending"),
        "p99_ms": max(slowest, default=None),
        "lag_p99_ms": max(lags, default=None),
        "lateness_p99_ms": max(lateness, default=None),
        "reminders_overdue": max(overdue, default=0),
        "tokens": tokens,
        "cost": metrics.total(shown, "cost"),
        "memory_bytes": sum(one["memory_bytes"] + one["sidecar_memory_bytes"] for one in services),
    }


def _level(number: int) -> str:
    return operations_api.LogLevel.Name(number).removeprefix(_LEVEL).lower()  # type: ignore[arg-type]


def dumps(document: Any) -> bytes:
    """JSON as the page reads it."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
