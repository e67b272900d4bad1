"""Which messages of the contracts are the typed `data` of which topic's events."""

from services.runtime import topics


def _of(package: str, *names: str) -> tuple[str, ...]:
    return tuple(f"gaggle.{package}.v1.{name}Event" for name in names)


PAYLOADS: dict[str, tuple[str, ...]] = {
    topics.CONVERSATION_CREATED: _of("conversation", "ConversationCreated"),
    topics.CONVERSATION_UPDATED: _of("conversation", "ConversationUpdated"),
    topics.CONVERSATION_DELETED: _of("conversation", "ConversationDeleted"),
    topics.MESSAGE_SENT: _of("conversation", "MessagesAppended"),
    topics.MESSAGE_RECEIVED: _of("conversation", "MessagesAppended"),
    topics.USER_ERASED: _of("conversation", "UserErased"),
    topics.USER_ERASURE_COMPLETED: _of("conversation", "UserErasureCompleted"),
    topics.TOOL_EXECUTED: _of("agent", "ToolExecuted"),
    topics.SESSION_STARTED: _of("agent", "SessionStarted"),
    topics.SESSION_UPDATED: _of("agent", "SessionUpdated"),
    topics.SESSION_ENDED: _of("agent", "SessionEnded"),
    topics.EXTENSION_REGISTERED: _of("extension", "ExtensionRegistered"),
    topics.EXTENSION_UPDATED: _of("extension", "ExtensionUpdated"),
    topics.EXTENSION_DELETED: _of("extension", "ExtensionDeleted"),
    topics.EXTENSION_LOADED: _of("extension", "ExtensionLoaded"),
    topics.EXTENSION_UNLOADED: _of("extension", "ExtensionUnloaded"),
    topics.EXTENSION_ERROR: _of("extension", "ExtensionError"),
    topics.RECIPE_CREATED: _of("recipe", "RecipeChanged"),
    topics.RECIPE_UPDATED: _of("recipe", "RecipeChanged"),
    topics.RECIPE_DELETED: _of("recipe", "RecipeDeleted"),
    **dict.fromkeys(
        (
            topics.RECIPE_STARTED,
            topics.RECIPE_COMPLETED,
            topics.RECIPE_FAILED,
            topics.RECIPE_CANCELLED,
            topics.RECIPE_PAUSED,
            topics.RECIPE_RESUMED,
        ),
        ("gaggle.recipe.v1.ExecutionEvent",),
    ),
    **dict.fromkeys(
        (topics.RECIPE_STEP_STARTED, topics.RECIPE_STEP_COMPLETED, topics.RECIPE_STEP_WAITING),
        ("gaggle.recipe.v1.StepEvent",),
    ),
    topics.TASK_EVENTS: _of("task", "TaskCreated", "TaskUpdated", "TaskCompleted", "TaskReopened", "TaskDeleted"),
    topics.REMINDERS: _of("reminder", "ReminderDue", "ReminderScheduled", "ReminderCancelled", "ReminderSnoozed"),
    topics.NOTIFICATIONS: _of(
        "notification",
        "NotificationRequested",
        "NotificationCreated",
        "NotificationRead",
        "NotificationPreferencesChanged",
        "NotificationDelivered",
        "NotificationParked",
    ),
}
"""As this mesh's services publish them; event_type says which, where there are several."""
