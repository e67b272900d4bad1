"""Settings of the recipe service."""

from pydantic import Field

from services.runtime.settings import ServiceSettings


class RecipeSettings(ServiceSettings):
    """What the recipe service is told beside the common settings."""

    agent_app: str = "agent"
    """App id, without the mesh's suffix, of the service that answers prompts."""

    extension_app: str = "extension"
    """App id, without the mesh's suffix, of the service that calls tools."""

    conversation_app: str = "conversation"
    """App id, without the mesh's suffix, of the service that keeps what prompts and answers said."""

    allow_shell_checks: bool = False
    """Whether the shell commands of recipes' retries are run, on this very machine, as this process's user."""

    max_steps: int = Field(default=256, ge=1, le=1000)
    """Steps of one execution, sub-recipes' and further attempts' included."""

    max_depth: int = Field(default=5, ge=1, le=16)
    """How deep sub-recipes may lie in one another."""

    step_attempts: int = Field(default=5, ge=1, le=32)
    """How often a step is tried whose service is away or busy, before it fails."""

    step_timeout_seconds: int = Field(default=1800, ge=1, le=86_400)
    """How long one prompt or tool call may take, waiting for a person not counted."""

    watch_poll_seconds: float = Field(default=2.0, gt=0)
    """How often a watcher looks for changes that another replica made."""
