"""Which message of the contracts is the typed `data` of which topic's events."""

from services.runtime import topics

_CONVERSATION = "gaggle.conversation.v1"

PAYLOADS: dict[str, str] = {
    topics.CONVERSATION_CREATED: f"{_CONVERSATION}.ConversationCreatedEvent",
    topics.CONVERSATION_UPDATED: f"{_CONVERSATION}.ConversationUpdatedEvent",
    topics.CONVERSATION_DELETED: f"{_CONVERSATION}.ConversationDeletedEvent",
    topics.MESSAGE_SENT: f"{_CONVERSATION}.MessagesAppendedEvent",
    topics.MESSAGE_RECEIVED: f"{_CONVERSATION}.MessagesAppendedEvent",
    topics.USER_ERASED: f"{_CONVERSATION}.UserErasedEvent",
    topics.USER_ERASURE_COMPLETED: f"{_CONVERSATION}.UserErasureCompletedEvent",
}
"""Events of every other topic have whatever `data` their publisher gives them."""
