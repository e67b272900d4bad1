"""What each service needs, written down once more: dapr-components/ and dapr-configurations/ are held to it."""

import importlib
import inspect
from typing import TYPE_CHECKING, Final

from cli.mesh.data import PROJECT_ROOT
from cli.mesh.runfile import RunFile
from services.runtime.service import Runtime, Wiring

if TYPE_CHECKING:
    from services.runtime.settings import ServiceSettings

SERVICES: Final = tuple(app.service for app in RunFile.load(PROJECT_ROOT / "dapr.yaml").apps)

_OWNERS = ("task", "reminder", "notification", "extension", "agent", "recipe")
_OWNER = "gaggle.owner.v1.EntityOwnerService"
_RECONCILED = {f"{_OWNER}/{method}" for method in ("ListUsers", "ListRevisions", "RepublishEvents")}


def _methods(service: str, *names: str) -> set[str]:
    return {f"{service}/{name}" for name in names}


_CONVERSATION = "gaggle.conversation.v1.ConversationService"
_EXTENSION = "gaggle.extension.v1.ExtensionService"

_SESSION = _methods("gaggle.auth.v1.AuthService", "GetSession")

CALLS: Final[dict[tuple[str, str], set[str]]] = {
    ("conversation", "audit"): _methods("gaggle.audit.v1.AuditService", "QueryConversations", "Search"),
    ("audit", "conversation"): _methods(_CONVERSATION, "GetConversation", "ListMessages")
    | _methods("gaggle.conversation.v1.OwnerService", "ListUsers", "ListRevisions", "RepublishEvents"),
    **{("audit", owner): _RECONCILED for owner in _OWNERS},
    ("agent", "conversation"): _methods(
        _CONVERSATION,
        "GetConversation",
        "CreateConversation",
        "ListMessages",
        "GetContext",
        "AppendMessages",
        "RaiseFence",
    ),
    ("agent", "extension"): _methods(
        _EXTENSION, "GetExtension", "ListTools", "LoadExtension", "CallTool", "CancelToolCall"
    ),
    ("recipe", "agent"): _methods(
        "gaggle.agent.v1.AgentService", "Chat", "WatchTurn", "CancelTurn", "CreateSession", "EndSession"
    ),
    ("sync", "audit"): _methods("gaggle.audit.v1.LogService", "FollowLog", "ReadLog"),
    **{
        (caller, "auth"): _methods("gaggle.auth.v1.AuthService", "GetSession")
        for caller in SERVICES
        if caller != "auth"
    },
    ("recipe", "conversation"): _methods(_CONVERSATION, "CreateConversation"),
    ("recipe", "extension"): _methods(
        _EXTENSION, "GetExtension", "RegisterExtension", "LoadExtension", "CallTool", "CancelToolCall"
    ),
    ("task", "reminder"): _methods("gaggle.reminder.v1.ReminderService", "CancelReminders", "RescheduleReminders"),
    ("reminder", "task"): _methods("gaggle.task.v1.TaskService", "GetTask", "UpdateTask"),
    ("recurrence", "task"): _methods("gaggle.task.v1.TaskService", "GetTask")
    | _methods("gaggle.task.v1.OccurrenceService", "ListWaiting", "ContinueSeries")
    | _methods(_OWNER, "ListUsers"),
}
"""(caller, callee) -> the methods that it calls through its sidecar."""

APIS: Final[dict[str, set[str]]] = {
    "conversation": {"state", "publish"},
    "audit": {"publish", "bindings"},
    "auth": set(),
    "task": {"state", "publish"},
    "recurrence": set(),
    "reminder": {"state", "publish", "jobs"},
    "notification": {"state", "publish"},
    "extension": {"state", "publish"},
    "agent": {"state", "publish", "conversation"},
    "recipe": {"state", "publish", "workflows"},
    "sync": set(),
}
"""Dapr's APIs that a service uses, beside metadata and secrets, which all do."""

SECRETS: Final[dict[str, set[str]]] = {
    service: {"token-jwks", f"service-key-{service}"}
    | {
        "auth": {"issuer-key"},
        "notification": {"SMTP_HOST", "SMTP_PORT", "SMTP_USERNAME", "SMTP_PASSWORD", "SMTP_FROM_EMAIL"},
        "agent": {"OPENAI_API_KEY"},
    }.get(service, set())
    for service in SERVICES
}
"""Secrets that a service reads, whatever an operator has named beside them."""

_STATELESS = {"auth", "audit", "recurrence", "sync"}


def components_of(service: str) -> set[str]:
    """Components of the set local/ that a service reaches."""
    return (
        {"secretstore"}
        | (set() if service in _STATELESS else {"statestore"})
        | (set() if service in {"auth", "sync"} else {"pubsub"})
        | ({"pubsub-fanout"} if service in {"audit", "conversation"} else set())
        | {"audit": {"readmodel"}, "reminder": {"reminder-sweep"}}.get(service, set())
    )


async def wiring_of(service: str) -> Wiring:
    """A service put together as its process does it, short of starting it."""
    module = importlib.import_module(f"services.{service}.__main__")
    settings_class: type[ServiceSettings] = inspect.signature(module.build).parameters["settings"].annotation
    given = {"app_id": service, "port": 1, "http_port": 1, "sidecar_port": 1, "app_api_token": "t"}
    settings = settings_class.model_validate(given)
    runtime = Runtime(service, settings)
    try:
        wiring: Wiring = module.build(runtime, settings)
    finally:
        await runtime.sidecar.close()
    return wiring
