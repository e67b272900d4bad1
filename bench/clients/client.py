"""What a system measured in process can do."""

from dataclasses import dataclass
from typing import Protocol

WINDOW = 50
"""How many of the newest messages are read."""

CONNECTIONS = 10
"""To PostgreSQL, for every system: as many as the sidecar's component has."""


@dataclass(frozen=True, slots=True)
class Spec:
    """Where everything is."""

    database_url: str
    """PostgreSQL by its Unix socket; what a client makes there lies in the schema `bench`."""

    sidecar_grpc: str
    sidecar_http: str
    store: str
    """The state component."""

    pubsub: str
    service: str
    """The conversation service itself."""

    token: str
    document: str
    """A file with the bytes that a read answers, for those that know no messages."""

    pools: dict[str, int]
    """Conversations of each history to append to."""

    task: str = ""
    reminder: str = ""
    """Where the mesh has them: the task service and the reminder service themselves."""

    sync: str = ""
    sync_url: str = ""
    """The sync service itself, and its WebSocket."""

    tokens: str = ""
    """A file with a JSON list of tokens, one a user."""

    extension: str = ""
    """The extension service itself; empty: it does not run."""

    extension_app_id: str = ""
    agent: str = ""
    """The agent service itself; empty: it does not run."""

    agent_app_id: str = ""
    model_url: str = ""
    """Where the model that answers at once is."""
    recipe: str = ""
    """The recipe service itself; empty: it does not run."""


class Client(Protocol):
    """A system with histories of 50 and 1,000 messages: one to read from, several to append to."""

    async def prepare(self, history: int) -> None:
        """Write the histories in one write each, and see that a read gives what it should."""

    async def read(self, history: int, caller: int) -> None:
        """Read the newest WINDOW messages, as far as the program that asked can use them."""

    async def append(self, history: int, caller: int) -> None:
        """Add one message to a conversation of the caller's own, durably."""

    async def reset(self, history: int) -> None:
        """Take away what was appended, so that every round appends to histories of the same length."""
