"""The sync service on the real mesh: everything that happens to a user, on every way to it."""

import asyncio
import json
import os
import sys
from typing import Any

import grpc
import pytest

from cli.mesh.data import PROJECT_ROOT
from gaggle.sync.v1 import sync_service_pb2, sync_service_pb2_grpc
from services.runtime.identity import TokenSigner
from tests.conversation.talking import Talker
from tests.mesh_fixture import Mesh
from tests.notification.notifying import Notified
from tests.recipe.running import Cook
from tests.sync.following import Follower, following, logged
from tests.task.tasking import Tasker

pytestmark = pytest.mark.mesh

_RECIPE = "version: 1.0.0\ntitle: One step\ndescription: d\nprompt: say hello\n"


async def _live(mesh: Mesh, user: str) -> None:
    """Have something of every kind happen to a user."""
    async with (
        mesh.channel("task") as tasks,
        mesh.channel("conversation") as conversations,
        mesh.channel("recipe") as recipes,
        mesh.channel("notification") as notifications,
    ):
        await Tasker(tasks, mesh.metadata(user)).create("of mine")
        await Talker(conversations, mesh.metadata(user)).create("hello")
        await Notified(mesh, notifications, user).tell("look")
        cook = Cook(recipes, mesh.metadata(user))
        await cook.ended(await cook.start(_RECIPE))


async def test_everything_that_happens_to_a_user(mesh: Mesh, user: str) -> None:
    """Tasks, notifications, conversations, executions come on one stream: all that the log has, and nobody else's."""
    async with following(mesh, user) as mine, following(mesh, f"{user}-stranger") as others:
        await asyncio.gather(_live(mesh, user), _live(mesh, f"{user}-stranger"))
        # The last of a run; what it was made of came before.
        for follower in (mine, others):
            await follower.until(1, "goose.recipe.completed")
        kinds = {one.entity_type for one in mine.events}
        assert {"task", "notification", "conversation", "recipe", "execution"} <= kinds
        await _even(mesh, mine, user)
        await _even(mesh, others, f"{user}-stranger")


async def test_the_grpc_stream_through_another_sidecar(mesh: Mesh, user: str) -> None:
    """Watch works by service invocation, with history first, and of the asked kinds alone."""
    async with mesh.channel("task") as tasks, following(mesh, user) as follower:
        tasker = Tasker(tasks, mesh.metadata(user))
        before = (await tasker.create("before")).id
        await follower.until(1, "task.created")
        async with mesh.sidecar("task") as channel:
            stub: Any = sync_service_pb2_grpc.SyncServiceStub(channel)
            metadata = (*mesh.metadata(user, app_id=mesh.service("sync").app_id), ("dapr-stream", "true"))
            request = sync_service_pb2.WatchRequest(after_position=0, entity_types=["task"])
            call = stub.Watch(request, metadata=metadata, timeout=30)
            seen = [await call.read(), await call.read()]
            assert [one.WhichOneof("kind") for one in seen] == ["event", "caught_up"]
            assert seen[0].event.entity_id == before
            now = (await tasker.create("now")).id
            response = await call.read()
            assert (response.event.event_type, response.event.entity_id) == ("task.created", now)
            call.cancel()


async def test_services_and_admins_get_no_one_elses(mesh: Mesh, user: str) -> None:
    """An admin's stream is their own like anybody's; a service's token opens none, and no user reads the whole log."""
    async with mesh.channel("sync") as channel, mesh.channel("task") as tasks:
        stub: Any = sync_service_pb2_grpc.SyncServiceStub(channel)
        admin = f"{user}-admin"
        call = stub.Watch(sync_service_pb2.WatchRequest(), metadata=mesh.metadata(admin, roles=["admin"]), timeout=30)
        assert (await call.read()).HasField("caught_up")
        await Tasker(tasks, mesh.metadata(user)).create("not the admin's")
        mine = (await Tasker(tasks, mesh.metadata(admin)).create("the admin's")).id
        assert (await call.read()).event.entity_id == mine
        call.cancel()
        key = (mesh.data.keys / "task.jwk").read_text()
        token = TokenSigner(key, issuer="gaggle", audience="gaggle").sign(user, ttl_seconds=60, service="task")
        call = stub.Watch(sync_service_pb2.WatchRequest(), metadata=(("authorization", f"Bearer {token}"),), timeout=30)
        assert await _code(call) is grpc.StatusCode.PERMISSION_DENIED
    async with mesh.channel("audit") as channel:
        follow: Any = channel.unary_stream("/gaggle.audit.v1.LogService/FollowLog")
        for roles in ((), ("admin",)):
            assert await _code(follow(b"", metadata=mesh.metadata(user, roles=roles), timeout=30)) is (
                grpc.StatusCode.PERMISSION_DENIED
            )


async def test_gaggle_watch(mesh: Mesh, user: str) -> None:
    """Into a pipe `gaggle watch` writes each event as a line of JSON, from a position on, and stays."""
    path = os.pathsep.join([str(PROJECT_ROOT), str(PROJECT_ROOT / "gen")])
    environment = {"GAGGLE_DATA": str(mesh.data.path), "PYTHONPATH": path, "GAGGLE_USER": user}
    async with mesh.channel("task") as tasks:
        tasker = Tasker(tasks, mesh.metadata(user))
        first = (await tasker.create("first \x1b[31m")).id
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cli.main", "watch", "--after", "0", "--type", "task"),
            env=os.environ | environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                lines = [json.loads(await process.stdout.readline())]
                second = (await tasker.create("second")).id
                lines.append(json.loads(await process.stdout.readline()))
        finally:
            process.terminate()
            await process.wait()
    assert [one["event"]["entityId"] for one in lines] == [first, second]
    assert all(one["event"]["eventType"] == "task.created" for one in lines)
    assert int(lines[0]["position"]) < int(lines[1]["position"])


async def _even(mesh: Mesh, follower: Follower, user: str) -> None:
    """Hold what a client got against the log."""
    assert follower.began is not None
    wanted = [one.event_id for one in await logged(mesh, user, follower.began)]
    seen = [one.event_id for one in await follower.until(len(wanted))]
    assert seen[: len(wanted)] == wanted
    assert {one.user_id for one in follower.events} == {user}


async def _code(call: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    code: grpc.StatusCode = caught.value.code()
    return code
