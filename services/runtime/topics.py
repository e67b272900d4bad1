"""Every topic of the product. The audit service subscribes to all of them; nobody keeps a second list."""

MESSAGE_SENT = "goose.agent.message.sent"
MESSAGE_RECEIVED = "goose.agent.message.received"
TOOL_EXECUTED = "goose.agent.tool.executed"
SESSION_STARTED = "goose.agent.session.started"
SESSION_UPDATED = "goose.agent.session.updated"
SESSION_ENDED = "goose.agent.session.ended"
CONVERSATION_CREATED = "goose.conversation.created"
CONVERSATION_UPDATED = "goose.conversation.updated"
CONVERSATION_DELETED = "goose.conversation.deleted"
RECIPE_CREATED = "goose.recipe.created"
RECIPE_UPDATED = "goose.recipe.updated"
RECIPE_DELETED = "goose.recipe.deleted"
RECIPE_STARTED = "goose.recipe.started"
RECIPE_COMPLETED = "goose.recipe.completed"
RECIPE_FAILED = "goose.recipe.failed"
RECIPE_CANCELLED = "goose.recipe.cancelled"
RECIPE_PAUSED = "goose.recipe.paused"
RECIPE_RESUMED = "goose.recipe.resumed"
RECIPE_STEP_STARTED = "goose.recipe.step.started"
RECIPE_STEP_COMPLETED = "goose.recipe.step.completed"
RECIPE_STEP_WAITING = "goose.recipe.step.waiting"
EXTENSION_REGISTERED = "goose.extension.registered"
EXTENSION_UPDATED = "goose.extension.updated"
EXTENSION_DELETED = "goose.extension.deleted"
EXTENSION_LOADED = "goose.extension.loaded"
EXTENSION_UNLOADED = "goose.extension.unloaded"
EXTENSION_ERROR = "goose.extension.error"
USER_ERASED = "goose.user.erased"
USER_ERASURE_COMPLETED = "goose.user.erasure.completed"
NOTIFICATIONS = "notifications"
TASK_EVENTS = "task-events"
REMINDERS = "reminders"

SNAKE_CASE_TOPICS = frozenset({TASK_EVENTS, REMINDERS})
"""Topics whose JSON uses the names as the contracts write them; all others use lowerCamelCase."""

ALL_TOPICS: tuple[str, ...] = (
    MESSAGE_SENT,
    MESSAGE_RECEIVED,
    TOOL_EXECUTED,
    SESSION_STARTED,
    SESSION_UPDATED,
    SESSION_ENDED,
    CONVERSATION_CREATED,
    CONVERSATION_UPDATED,
    CONVERSATION_DELETED,
    RECIPE_CREATED,
    RECIPE_UPDATED,
    RECIPE_DELETED,
    RECIPE_STARTED,
    RECIPE_COMPLETED,
    RECIPE_FAILED,
    RECIPE_CANCELLED,
    RECIPE_PAUSED,
    RECIPE_RESUMED,
    RECIPE_STEP_STARTED,
    RECIPE_STEP_COMPLETED,
    RECIPE_STEP_WAITING,
    EXTENSION_REGISTERED,
    EXTENSION_UPDATED,
    EXTENSION_DELETED,
    EXTENSION_LOADED,
    EXTENSION_UNLOADED,
    EXTENSION_ERROR,
    USER_ERASED,
    USER_ERASURE_COMPLETED,
    NOTIFICATIONS,
    TASK_EVENTS,
    REMINDERS,
)


def dead_letter_topic(app_id: str) -> str:
    """Name the topic that takes what `app_id` could not handle."""
    return f"dead-letter.{app_id}"
