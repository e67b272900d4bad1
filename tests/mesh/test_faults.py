"""Processes that are killed, stalled and restarted under load: nothing acknowledged is lost, nothing happens twice."""

import json
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from services.runtime import topics
from tests.conditions import eventually
from tests.mesh.load import Load, under_load
from tests.mesh_fixture import Mesh

pytestmark = [pytest.mark.mesh, pytest.mark.slow, pytest.mark.xdist_group("faults")]

_BACK_SECONDS = 10.0
"""On a machine that has a core for who wants one; see `_patience`."""

_MIXED_SECONDS = float(os.environ.get("GAGGLE_SOAK_SECONDS", "90"))
_SEED = int(os.environ.get("GAGGLE_SEED", "0")) or random.randrange(1, 2**31)
_GIVEN_UP = "App entered un-healthy status"
_REPLICAS = ("conversation", "conversation-2")


@pytest.fixture(scope="module")
def own(private_mesh: Callable[..., Mesh]) -> Iterator[Mesh]:
    """Two replicas of the conversation service beside the log, whose processes may be killed."""
    with pytest.MonkeyPatch.context() as environment:
        # What a killed broker took with it is found again soon enough for a test.
        environment.setenv("GAGGLE_RECONCILE_INTERVAL_SECONDS", "5")
        environment.setenv("GAGGLE_RECONCILE_GRACE_SECONDS", "3")
        yield private_mesh(only=["conversation", "audit"], replicas={"conversation": 2})


KILLED = {
    "service": ["conversation"],
    "sidecar": ["conversation.daprd"],
    "pair": ["conversation-2", "conversation-2.daprd"],
    "database": ["postgres"],
    "broker": ["redis"],
}


@pytest.mark.parametrize("processes", KILLED.values(), ids=KILLED.keys())
async def test_kill(own: Mesh, user: str, tmp_path: Path, processes: list[str]) -> None:
    """After kill -9 all clients are served again within ten seconds, with all that was acknowledged, told once."""
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(60)
        dead = {process: own.kill(process) for process in processes}
        await load.everyone(within=_patience())
        for process, pid in dead.items():
            await own.back(process, pid)
        await load.more(60)


@pytest.mark.parametrize("replica", _REPLICAS)
async def test_stalled_sidecar(own: Mesh, user: str, tmp_path: Path, replica: str) -> None:
    """While a sidecar stalls, calls end at their deadline; after it all goes on.

    What it was about to commit keeps its row locked in the database, so that the other replica may have to wait, too.
    """
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(30)
        own.signal(f"{replica}.daprd", signal.SIGSTOP)
        try:
            late = load.failed("DEADLINE_EXCEEDED")

            async def deadlines_held() -> bool:
                return load.failed("DEADLINE_EXCEEDED") >= late + 4

            await _until(deadlines_held)
        finally:
            own.signal(f"{replica}.daprd", signal.SIGCONT)
        await load.everyone(within=_patience())


async def test_broker_away(own: Mesh, user: str, tmp_path: Path) -> None:
    """While the broker is away appends go on; afterwards all is told, what one replica wrote in its order."""
    async with under_load(own, user, tmp_path, seed=_SEED, replicas=1) as load:
        await load.more(30)
        own.signal("redis", signal.SIGSTOP)
        try:
            before = len(load.attempts)
            await load.more(300)
            assert all(one.outcome == "OK" for one in load.attempts[before:])
        finally:
            own.signal("redis", signal.SIGCONT)
    for name in load.conversations:
        for topic, told in (await _published(own, user, name)).items():
            first_times = list(dict.fromkeys(told))
            assert first_times == sorted(first_times), f"{topic} of {name}"


async def test_log_killed_behind_a_backlog(own: Mesh, user: str, tmp_path: Path) -> None:
    """The log is given up by its sidecar, with events under way to it, and killed: all are delivered to the next."""
    daprd_log = own.data.log("audit.daprd")
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(30)
        before = daprd_log.read_text().count(_GIVEN_UP)
        own.signal("audit", signal.SIGSTOP)

        async def given_up() -> bool:
            return daprd_log.read_text().count(_GIVEN_UP) > before

        await _until(given_up)
        await load.more(300)
        await own.back("audit", own.kill("audit"))
        await load.more(60)


async def test_death_between_commit_and_publish(own: Mesh, user: str, tmp_path: Path) -> None:
    """What was committed while nothing could be published is told after both replicas were killed."""
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(20)
        own.signal("redis", signal.SIGSTOP)
        try:
            await load.more(60)
            dead = {replica: own.kill(replica) for replica in _REPLICAS}
        finally:
            own.signal("redis", signal.SIGCONT)
        for replica, pid in dead.items():
            await own.back(replica, pid)


async def test_rolling_restart(own: Mesh, user: str, tmp_path: Path) -> None:
    """Every service restarted under load, one replica after the other: retries suffice, nothing is lost."""
    async with under_load(own, user, tmp_path, seed=_SEED) as load:
        await load.more(30)
        for service in ("conversation", "audit"):
            restarted = await own.restart(service)
            assert len(restarted) == len(own.service(service).replicas)
        await load.everyone(within=_patience())


@pytest.mark.timeout(_MIXED_SECONDS + 300)
async def test_mixed_faults(own: Mesh, user: str, tmp_path: Path) -> None:
    """Faults of every kind in a seeded order, some at once: the log equals what was acknowledged."""
    chance = random.Random(_SEED)
    done: list[str] = []
    async with under_load(own, user, tmp_path, seed=_SEED, clients=8, conversations=5) as load:
        end = time.monotonic() + _MIXED_SECONDS
        try:
            while time.monotonic() < end:
                await load.more(chance.randrange(10, 60))
                await _fault(own, load, chance, done)
                print(f"{done[-1]}; {load.acknowledged()} acknowledged; seed {_SEED}")  # noqa: T201 - `make soak` shows it
        finally:
            (tmp_path / f"faults-{_SEED}.txt").write_text("\n".join(done))
    assert len(done) >= min(_MIXED_SECONDS / 30, 3)


async def _fault(mesh: Mesh, load: Load, chance: random.Random, done: list[str]) -> None:
    kind = chance.choice(("kill", "kill", "two", "stall", "restart"))
    processes = [*_REPLICAS, *(f"{one}.daprd" for one in _REPLICAS), "audit", "audit.daprd", "postgres", "redis"]
    chosen = chance.sample(processes, 2 if kind == "two" else 1)
    done.append(f"{time.monotonic() - load.began:.1f} {kind} {' '.join(chosen)}")
    if kind == "stall":
        mesh.signal(chosen[0], signal.SIGSTOP)
        try:
            calls = len(load.attempts) + chance.randrange(2, 12)

            async def some_calls() -> bool:
                return len(load.attempts) >= calls

            await _until(some_calls)
        finally:
            mesh.signal(chosen[0], signal.SIGCONT)
    elif kind == "restart":
        service = chance.choice(("conversation", "audit"))
        done[-1] += f" -> {service}"
        await mesh.restart(service)
    else:
        for process, pid in {process: mesh.kill(process) for process in chosen}.items():
            # Killed often enough, a process waits before it is started again.
            await mesh.back(process, pid, within=90.0)


def _patience() -> float:
    """Seconds until all is well again: more where processes queue for the cores."""
    return _BACK_SECONDS * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


async def _until(check: Callable[[], Awaitable[bool]], *, within: float = 40.0) -> None:
    await eventually(check, within=within, what="what the stall should show")


async def _published(mesh: Mesh, user: str, conversation_id: str) -> dict[str, list[int]]:
    """Revisions told of a conversation, by topic, in the broker's order."""
    secrets: dict[str, Any] = json.loads(mesh.description.secrets_file.read_text())
    found: dict[str, list[int]] = {}
    async with redis.asyncio.from_url(
        f"redis://:{secrets['redis-password']}@{mesh.description.broker_address}"
    ) as broker:
        for topic in (topics.MESSAGE_SENT, topics.MESSAGE_RECEIVED):
            entries: Any = await broker.xrange(topic)
            for _, entry in entries:
                body = json.loads(entry[b"data"])["data"]
                if (body["userId"], body["entityId"]) == (user, conversation_id):
                    found.setdefault(topic, []).append(int(body["revision"]))
    return found
