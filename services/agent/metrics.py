"""What an operator wants to know of turns and models."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from gaggle.agent.v1 import turn_pb2
from gaggle.conversation.v1 import message_pb2

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
_TURN = "TURN_STATUS_"


class AgentMetrics:
    """Counted by this process. Models are named as the operator's settings do, so that there are few."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Make them in the process's registry."""
        self.tokens = Counter("gaggle_agent_tokens", "Tokens that models counted", ["model", "kind"], registry=registry)
        """Kind "input", "output"; "cache_read" and "cache_write" are parts of the input."""

        self.cost = Counter(
            "gaggle_agent_cost_dollars", "What models cost, where prices are known", ["model"], registry=registry
        )
        self.model = Histogram(
            "gaggle_agent_model_seconds",
            "From a question to a model to the end of its answer",
            ["model", "outcome"],
            buckets=_SECONDS,
            registry=registry,
        )
        """Outcome "ok", "failed", or "cancelled" by whoever waited."""

        self.turns = Counter("gaggle_agent_turns", "Turns ended", ["status"], registry=registry)
        self.tools = Counter("gaggle_agent_tool_calls", "Tool calls answered", ["outcome"], registry=registry)

    def count(self, model: str, usage: message_pb2.TokenUsage) -> None:
        """Add one answer of a model."""
        for kind, tokens in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cache_read", usage.cache_read_input_tokens),
            ("cache_write", usage.cache_write_input_tokens),
        ):
            self.tokens.labels(model, kind).inc(max(tokens, 0))
        if usage.HasField("cost"):
            self.cost.labels(model).inc(max(usage.cost, 0.0))

    def ended(self, status: "turn_pb2.TurnStatus.ValueType") -> None:
        """Count a turn's end."""
        self.turns.labels(turn_pb2.TurnStatus.Name(status).removeprefix(_TURN).lower()).inc()
