"""Dapr's Jobs API: a call at a time, kept by the scheduler.

A job is delivered at least once, to `Callbacks.OnJobEvent` of any replica. While no sidecar of the app is connected,
the scheduler keeps what is due and delivers it as soon as one is. A delivery that fails is repeated every second for as
long as it fails: Dapr's own default gives up after three. Jobs live in the scheduler's data alone, so whoever must not
lose one keeps it in state as well.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import Message

from services.runtime.call import remaining_seconds
from services.runtime.dapr import common_pb2, jobs_pb2
from services.runtime.sidecar import Sidecar, translate

SCHEDULER = "scheduler"
"""How the dependency is called in errors."""

# The sidecar waits up to half a minute for a scheduler that is away; callers need to know sooner.
_TIMEOUT_SECONDS = 3.0
_RETRY_SECONDS = 1


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A job whose time has come."""

    name: str
    data: any_pb2.Any


JobHandler = Callable[[JobEvent], Awaitable[None]]
"""Returns when the job has had its effect; an error has it delivered again."""


class Jobs:
    """Schedules this app's jobs. A call raises UnavailableError or DeadlineError if it may not have been done."""

    def __init__(self, sidecar: Sidecar) -> None:
        """`sidecar` is the own one."""
        self._sidecar = sidecar

    async def schedule(self, name: str, due: datetime, data: Message) -> bool:
        """See that there is a job of this name; False if there was one, which is left as it is.

        A time gone by is as good as now. The name is at most 512 characters, with no slash, backslash, # or ?.
        """
        packed = any_pb2.Any()
        packed.Pack(data)
        # Without `max_retries` it is retried for ever.
        policy = common_pb2.JobFailurePolicy(constant=common_pb2.JobFailurePolicyConstant())
        policy.constant.interval.FromSeconds(_RETRY_SECONDS)
        job = jobs_pb2.Job(
            name=name,
            due_time=due.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            data=packed,
            failure_policy=policy,
        )
        try:
            await self._call(self._sidecar.stub.ScheduleJobAlpha1, jobs_pb2.ScheduleJobRequest(job=job))
        except grpc.aio.AioRpcError as error:
            if error.code() == grpc.StatusCode.ALREADY_EXISTS:
                return False
            raise translate(error, SCHEDULER) from error
        return True

    async def delete(self, name: str) -> None:
        """See that there is no job of this name."""
        try:
            await self._call(self._sidecar.stub.DeleteJobAlpha1, jobs_pb2.DeleteJobRequest(name=name))
        except grpc.aio.AioRpcError as error:
            raise translate(error, SCHEDULER) from error

    async def _call(self, method: Callable[..., Awaitable[object]], request: object) -> None:
        await method(request, timeout=remaining_seconds(_TIMEOUT_SECONDS), metadata=self._sidecar.metadata())
