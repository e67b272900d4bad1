"""Several replicas, one connection; and what the rest of the mesh asks of the owner of extensions."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from cli.mesh.secrets import read_secrets
from gaggle.conversation.v1 import conversation_service_pb2 as conversations
from gaggle.conversation.v1 import conversation_service_pb2_grpc as conversations_grpc
from gaggle.extension.v1 import extension_pb2
from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from services.runtime.identity import TokenSigner
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.extension.asking import Asker, odd
from tests.extension.log import events_of, read_model
from tests.mesh_fixture import Mesh

pytestmark = pytest.mark.mesh


@pytest.fixture(scope="module")
def pair(private_mesh: Callable[..., Mesh]) -> Mesh:
    """A mesh with two replicas of the service."""
    return private_mesh(only=["extension"], replicas={"extension": 2})


async def test_replicas_share_a_connection(pair: Mesh, user: str, tmp_path: Any) -> None:
    """A call that reaches another replica goes on to the one that holds the connection, by its id or its name."""
    async with pair.channel("extension", 0) as one, pair.channel("extension", 1) as two:
        first, second = Asker(one, pair.metadata(user)), Asker(two, pair.metadata(user))
        extension_id = await first.loaded(odd())
        counts = [await asker.text("count", name="odd") for asker in (first, second, first, second)]
        assert counts == ["1", "2", "3", "4"]
        assert len((await second("ListTools", extension_id=extension_id)).tools) > 8
        refusal = await refused(second.call("append", {"path": "/x"}, extension_id=extension_id))
        assert (refusal.code, refusal.fields) == ("INVALID_ARGUMENT", ("arguments_json",))
        line = {"path": str(tmp_path / "file"), "text": "x"}
        answers = [await asker.call("append", line, name="odd", call_id="c") for asker in (first, second)]
        assert answers[0] == answers[1]
        assert (tmp_path / "file").read_text() == "x\n"
        mark = tmp_path / "mark"
        stream = second.stream("slow", {"seconds": 60, "mark": str(mark)}, name="odd", call_id="s")
        async for response in stream:
            if response.HasField("progress"):
                break
        assert (await second("CancelToolCall", name="odd", call_id="s")).cancelled
        await second("UnloadExtension", extension_id=extension_id)
        assert (await refused(first.call("count", name="odd"))).facts == {"state": "unloaded"}


async def test_another_replica_takes_over(pair: Mesh, user: str) -> None:
    """When the holder is killed the next call is answered by the other one, with a server of its own."""
    async with pair.channel("extension", 1) as two:
        async with pair.channel("extension", 0) as one:
            first = Asker(one, pair.metadata(user))
            extension_id = await first.loaded(odd())
            pid = json.loads(await first.text("whoami", extension_id=extension_id))["pid"]
        second = Asker(two, pair.metadata(user))
        dead = pair.kill("extension")
        found = json.loads(await second.text("whoami", extension_id=extension_id))
        assert found["pid"] != pid
        assert (await second.connection(extension_id)).state == extension_pb2.CONNECTION_STATE_LOADED
        await pair.back("extension", dead)

    async with pair.channel("extension", 0) as one:
        again = json.loads(await Asker(one, pair.metadata(user)).text("whoami", extension_id=extension_id))
        assert again["pid"] == found["pid"]


async def test_a_holder_that_hangs_is_left_behind(pair: Mesh, user: str) -> None:
    """A replica that is stopped holds nobody up for long; going on, it finds its connection moved and closes it."""
    async with pair.channel("extension", 0) as one, pair.channel("extension", 1) as two:
        first, second = Asker(one, pair.metadata(user)), Asker(two, pair.metadata(user))
        extension_id = await first.loaded(odd())
        pid = json.loads(await first.text("whoami", extension_id=extension_id))["pid"]
        pair.signal("extension", signal.SIGSTOP)
        try:
            found = json.loads(await asyncio.wait_for(second.text("whoami", extension_id=extension_id), 20))
        finally:
            pair.signal("extension", signal.SIGCONT)
        assert found["pid"] != pid

        async def closed() -> bool:
            return not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240, PTH110 - one look

        await eventually(closed, within=30, what="the former holder's server gone")
        again = json.loads(await first.text("whoami", extension_id=extension_id))
        assert again["pid"] == found["pid"]


async def test_the_owner_tells_its_revisions_again(mesh: Mesh, asker: Asker, admin: Asker, user: str) -> None:
    """The audit service finds users, revisions and events of extensions, shared ones under no user; nobody else may."""
    own = await asker.loaded(odd())
    shared = await admin.register(odd(f"shared-{user}"), shared=True)
    secrets = read_secrets(mesh.data)
    signer = TokenSigner(str(secrets["service-key-audit"]), issuer="gaggle", audience="gaggle")
    metadata = (("authorization", f"Bearer {signer.sign(user, ttl_seconds=60, service='audit')}"),)
    async with mesh.channel("extension") as channel:
        stub: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(channel)
        users: list[str] = []
        token = ""
        while True:
            listed = await stub.ListUsers(owner_service_pb2.ListUsersRequest(page_token=token), metadata=metadata)
            users += listed.user_ids
            token = listed.next_page_token
            if not token:
                break
        assert {user, ""} <= set(users)
        request = owner_service_pb2.ListRevisionsRequest(user_id=user)
        (found,) = (await stub.ListRevisions(request, metadata=metadata)).revisions
        assert (found.entity_type, found.entity_id, found.revision, found.deleted) == ("extension", own, 2, False)
        request = owner_service_pb2.ListRevisionsRequest(page_size=100)
        ids = {one.entity_id for one in (await stub.ListRevisions(request, metadata=metadata)).revisions}
        assert shared in ids
        again = owner_service_pb2.RepublishEventsRequest(
            user_id=user, entity_type="extension", entity_id=own, first_revision=1, last_revision=2
        )
        assert (await stub.RepublishEvents(again, metadata=metadata)).published == 2
        refusal = await refused(stub.ListUsers(owner_service_pb2.ListUsersRequest(), metadata=mesh.metadata(user)))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")

    async def known() -> bool:
        rows = await read_model(mesh, "")
        return (f"shared-{user}", "registered", "stdio") in rows

    await eventually(known, within=30, what="the shared one in the read model")


async def test_an_erased_user_leaves_nothing(mesh: Mesh, asker: Asker, admin: Asker, user: str) -> None:
    """EraseUser takes away a user's extensions, loaded shared ones too, with their servers; a receipt says so."""
    own = await asker.loaded(odd(f"secret-{user}"))
    shared = await admin.register(odd(f"shared-{user}"), shared=True)
    await asker("LoadExtension", extension_id=shared)
    pids = [json.loads(await asker.text("whoami", extension_id=one))["pid"] for one in (own, shared)]
    async with mesh.channel("conversation") as channel:
        stub: Any = conversations_grpc.ConversationServiceStub(channel)
        await stub.EraseUser(conversations.EraseUserRequest(), metadata=mesh.metadata(user), timeout=20)

        async def reported() -> int:
            request = conversations.GetErasureRequest()
            answer = await stub.GetErasure(request, metadata=mesh.metadata(user), timeout=20)
            return next((one.items for one in answer.receipts if one.service == "extension"), 0)

        assert await eventually(reported, within=60, what="the receipt") == 2
    for one in (own, shared):
        if one == own:
            assert (await refused(asker("GetExtension", extension_id=one))).code == "NOT_FOUND"
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: ASYNC240, PTH110 - one look
    refusal = await refused(asker.register(odd("again")))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    assert (await admin("GetExtension", extension_id=shared)).extension.id == shared

    async def forgotten() -> bool:
        told = await events_of(mesh, user)
        return await read_model(mesh, user) == [] and not [one for one in told if user in str(one["data"])]

    await eventually(forgotten, within=60, what="nothing in the log and the read model")
