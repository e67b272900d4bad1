"""Dapr's generated stubs, imported in this one place.

The `dapr` package moves its messages between modules from release to release (1.18 had one `dapr_pb2`, 1.19 splits
it), so the rest of the code takes them from here.
"""

from dapr.proto.common.v1 import common_pb2
from dapr.proto.runtime.v1 import (
    ai_pb2,
    appcallback_pb2,
    binding_pb2,
    dapr_pb2_grpc,
    jobs_pb2,
    metadata_pb2,
    pubsub_pb2,
    secret_pb2,
    state_pb2,
    workflow_pb2,
)

__all__ = [
    "ai_pb2",
    "appcallback_pb2",
    "binding_pb2",
    "common_pb2",
    "dapr_pb2_grpc",
    "jobs_pb2",
    "metadata_pb2",
    "pubsub_pb2",
    "secret_pb2",
    "state_pb2",
    "workflow_pb2",
]
