"""Settings of the agent service."""

from pydantic import BaseModel, ConfigDict, Field

from services.runtime.settings import ServiceSettings


class Prices(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: float = Field(default=0, ge=0)
    output: float = Field(default=0, ge=0)
    cache_read: float | None = Field(default=None, ge=0)
    """Absent: as `input`."""

    cache_write: float | None = Field(default=None, ge=0)
    """Absent: as `input`."""


class ModelSettings(BaseModel):
    """One model of an endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    context_tokens: int = Field(default=32_000, ge=256)
    """Tokens of question and answer together."""

    tools: bool = True
    """It can call tools."""

    prices: Prices | None = None
    """Absent: unknown; then a turn has a cost only if the provider says it."""


class Endpoint(BaseModel):
    """A server that speaks OpenAI's chat completions. Its models are named `{name}:{model}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern="^[a-z0-9_-]{1,32}$")
    base_url: str = "https://api.openai.com/v1"
    secret: str = "OPENAI_API_KEY"  # noqa: S105 - a name
    """The secret of the secret store that holds the key; empty: the endpoint wants none."""

    models: dict[str, ModelSettings] = Field(default_factory=dict)
    """What is known of its models. One that is not here can be named all the same."""

    timeout_seconds: float = Field(default=120.0, gt=0)
    """How long to wait for the next piece of an answer."""

    max_tokens_field: str = Field(default="max_completion_tokens", pattern="^max(_completion)?_tokens$")
    """How the endpoint spells the limit of an answer; older servers know `max_tokens` alone."""


class DaprModel(BaseModel):
    """A conversation component of the sidecar, named `dapr:{component}`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    component: str = Field(min_length=1)
    model: ModelSettings = ModelSettings()
    timeout_seconds: float = Field(default=120.0, gt=0)


class AgentSettings(ServiceSettings):
    """What the agent service is told beside the common settings."""

    default_model: str = "offline"
    """What answers where neither a turn nor its session names a model."""

    model_endpoints: tuple[Endpoint, ...] = (Endpoint(name="openai"),)
    """OpenAI-compatible endpoints, as JSON."""

    dapr_models: tuple[DaprModel, ...] = ()
    """Dapr conversation components, as JSON."""

    model_attempts: int = Field(default=4, ge=1, le=10)
    """Calls for one answer, where the provider is busy or breaks off."""

    model_backoff_seconds: float = Field(default=0.5, gt=0)
    """Before the second of them; doubled each time, at most 30 s. A provider's own Retry-After comes first."""

    checkpoint_seconds: float = Field(default=0.25, gt=0)
    """How often what a model streams is saved while it does."""

    lease_seconds: float = Field(default=10.0, gt=0)
    """How long a turn is left alone whose process is not heard of."""

    recovery_seconds: float = Field(default=2.0, gt=0)
    """How often turns are looked for that nobody works on."""

    degrade_seconds: float = Field(default=3.0, gt=0)
    """How long state and conversation may take to answer before a turn goes on without them."""

    unsaved_seconds: float = Field(default=5.0, gt=0)
    """How long a finished answer may wait to be saved before its caller is told that it is not."""

    patience_seconds: float = Field(default=600.0, gt=0)
    """How long a process keeps trying to save what a turn has said; afterwards another one takes it up."""

    tool_patience_seconds: float = Field(default=30.0, gt=0)
    """How long a tool call is repeated, under its own key, while the extension service is away."""

    parallel_tools: int = Field(default=8, ge=1, le=64)
    """Tool calls of one turn at a time."""

    max_steps: int = Field(default=50, ge=1, le=200)
    """Calls of the model in a turn that names no limit."""

    turn_timeout_seconds: int = Field(default=1800, ge=10, le=86_400)
    """A turn's time where it names none; waiting for a person does not count."""

    turn_retention_days: int = Field(default=30, ge=1, le=365)
    """How long turns are kept after their end. Their messages belong to the conversation and stay."""

    approval_expire_seconds: int = Field(default=3 * 86_400, ge=10, le=30 * 86_400)
    """How long a tool call waits for a person, where the turn does not say."""

    chat_window_messages: int = Field(default=50, ge=1, le=1000)
    """Messages that ChatService gives back with its answer."""

    chat_kept_messages: int = Field(default=200, ge=0, le=1_000_000)
    """Messages that a conversation of ChatService's making keeps; 0: all."""

    chat_extensions: tuple[str, ...] = ()
    """Extensions whose tools ChatService's turns may call where a request names none, as JSON. They are loaded for
    whoever has not done so; shared ones are there for everybody."""

    conversation_app: str = "conversation"
    """App id, without the mesh's suffix, of the conversation service."""

    extension_app: str = "extension"
    """App id, without the mesh's suffix, of the extension service."""
