"""Sums of what models were asked for. Knows neither gRPC nor Dapr."""

from gaggle.agent.v1 import session_pb2
from gaggle.conversation.v1 import message_pb2


def count(totals: session_pb2.UsageTotals, usage: message_pb2.TokenUsage) -> None:
    """Add one call of a model."""
    totals.input_tokens += usage.input_tokens
    totals.output_tokens += usage.output_tokens
    total = usage.total_tokens if usage.HasField("total_tokens") else usage.input_tokens + usage.output_tokens
    totals.total_tokens += total
    totals.cache_read_input_tokens += usage.cache_read_input_tokens
    totals.cache_write_input_tokens += usage.cache_write_input_tokens
    totals.cost += usage.cost
    totals.model_calls += 1


def add(totals: session_pb2.UsageTotals, more: session_pb2.UsageTotals) -> None:
    """Add sums to sums."""
    totals.input_tokens += more.input_tokens
    totals.output_tokens += more.output_tokens
    totals.total_tokens += more.total_tokens
    totals.cache_read_input_tokens += more.cache_read_input_tokens
    totals.cache_write_input_tokens += more.cache_write_input_tokens
    totals.cost += more.cost
    totals.model_calls += more.model_calls
