"""What the mesh asks of the owner of recipes: the read model, reconciliation, erasure."""

import asyncio
from typing import Any

import psycopg
import pytest

from cli.mesh.secrets import read_secrets
from gaggle.conversation.v1 import conversation_service_pb2, conversation_service_pb2_grpc
from gaggle.owner.v1 import owner_service_pb2, owner_service_pb2_grpc
from services.runtime.identity import TokenSigner
from tests.conditions import eventually
from tests.conversation.talking import refused
from tests.mesh_fixture import Mesh
from tests.recipe.corpus import sample
from tests.recipe.running import Cook
from tests.recipe.test_executions import recipe

pytestmark = pytest.mark.mesh

_WITHIN = 60.0


def _rows(mesh: Mesh, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with psycopg.connect(mesh.description.database_url) as connection:
        return connection.execute(statement.encode(), parameters).fetchall()


def _service_token(mesh: Mesh, service: str, user: str) -> str:
    """Sign as a service of the mesh does."""
    signer = TokenSigner(str(read_secrets(mesh.data)[f"service-key-{service}"]), issuer="gaggle", audience="gaggle")
    return signer.sign(user, ttl_seconds=60, service=service)


async def test_the_read_model_is_filled(mesh: Mesh, cook: Cook, user: str) -> None:
    """Recipes and executions stand in the SQL read model as they are: a completed step completes no execution."""
    made = await cook.take(sample("wrapped.json"), category="Greetings", tags=["a"])
    long = await cook.take(recipe("steps:\n- {name: a, prompt: say a}\n- {name: b, prompt: pause 30}\n"), name="Long")
    running = await cook.run(long.id)
    failing = await cook.start(recipe("prompt: fail\n"))
    await cook.ended(failing)
    query = """
        SELECT e.id, e.status, r.name, r.data ->> 'category' FROM goose.recipe_executions e
        JOIN goose.recipes r ON r.user_id = e.user_id AND r.id = e.recipe_id WHERE e.user_id = %s ORDER BY e.status
    """

    async def filled() -> bool:
        rows = await asyncio.to_thread(_rows, mesh, query, user)
        steps = (await cook("GetExecution", execution_id=running)).execution.completed_steps
        return steps == 1 and rows == [(failing, "failed", "Test", None), (running, "running", "Long", None)]

    await eventually(filled, within=_WITHIN, what="the read model has both executions")
    named = "SELECT name, status, data -> 'tags' FROM goose.recipes WHERE user_id = %s AND id = %s"
    rows = _rows(mesh, named, user, made.id)
    assert rows == [("Morning", "created", ["a"])]
    await cook("CancelExecution", execution_id=running)

    async def cancelled() -> bool:
        rows = await asyncio.to_thread(
            _rows, mesh, "SELECT status FROM goose.recipe_executions WHERE user_id = %s AND id = %s", user, running
        )
        return rows == [("cancelled",)]

    await eventually(cancelled, within=_WITHIN, what="the cancellation stands in the read model")


async def test_an_erased_user_leaves_nothing(mesh: Mesh, cook: Cook, stranger: Cook, user: str) -> None:
    """An erased user's recipes and executions go, one under way is stopped, and nothing is made for the user again."""
    secret = f"secret-of-{user}"
    await cook.ended(await cook.start(recipe(f"prompt: say {secret}\n").replace("Test", secret)))
    made = await cook.take(recipe(f"prompt: 'pause 50\n\n  say {secret}'\n"), tags=[secret], name=secret)
    await cook.run(made.id)
    kept = await stranger.take(sample("wrapped.json"))
    async with mesh.channel("conversation") as channel:
        stub: Any = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        await stub.EraseUser(conversation_service_pb2.EraseUserRequest(), metadata=cook.metadata, timeout=20)

        async def reported() -> dict[str, int]:
            answer = await stub.GetErasure(
                conversation_service_pb2.GetErasureRequest(), metadata=cook.metadata, timeout=20
            )
            receipts = {one.service: one.items for one in answer.receipts}
            return receipts if "recipe" in receipts else {}

        receipts = await eventually(reported, within=_WITHIN, what="the receipt of the recipe service")
    assert receipts["recipe"] == 4
    assert not (await cook("ListRecipes")).recipes
    assert not (await cook("ListExecutions")).executions
    refusal = await refused(cook("ImportRecipe", content=sample("wrapped.json")))
    assert (refusal.code, refusal.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    assert (await stranger("GetRecipe", recipe_id=kept.id)).recipe == kept

    async def forgotten() -> bool:
        query = """
            SELECT key FROM goose.dapr_state WHERE key LIKE %s AND key NOT LIKE %s
            AND (encode(value, 'hex') LIKE %s OR key LIKE %s)
        """
        app = mesh.service("recipe").app_id
        patterns = (f"{app}||%", "%||outbox:%", f"%{secret.encode().hex()}%", f"%{secret}%")
        return await asyncio.to_thread(_rows, mesh, query, *patterns) == []

    await eventually(forgotten, within=_WITHIN, what="no trace in the service's state")


async def test_revisions_are_for_services_alone(mesh: Mesh, cook: Cook, user: str) -> None:
    """The audit service can walk recipes and executions with their revisions; a user can't."""
    made = await cook.take(sample("wrapped.json"))
    await cook("UpdateRecipe", recipe_id=made.id, name="Two")
    execution_id = await cook.start(recipe("prompt: say x\n"))
    await cook.ended(execution_id)
    async with mesh.channel("recipe") as channel:
        owner: Any = owner_service_pb2_grpc.EntityOwnerServiceStub(channel)
        request = owner_service_pb2.ListRevisionsRequest(user_id=user, page_size=1)
        refusal = await refused(owner.ListRevisions(request, metadata=cook.metadata, timeout=10))
        assert (refusal.code, refusal.reason) == ("PERMISSION_DENIED", "SERVICE_NOT_ALLOWED")
        metadata = (("authorization", f"Bearer {_service_token(mesh, 'audit', user)}"),)
        found: dict[tuple[str, str], int] = {}
        while True:
            page = await owner.ListRevisions(request, metadata=metadata, timeout=10)
            found |= {(one.entity_type, one.entity_id): one.revision for one in page.revisions}
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert found["recipe", made.id] == 2
        assert found["execution", execution_id] == 4
        assert len(found) == 3
        again = owner_service_pb2.RepublishEventsRequest(
            user_id=user, entity_type="execution", entity_id=execution_id, first_revision=2, last_revision=3
        )
        assert (await owner.RepublishEvents(again, metadata=metadata, timeout=10)).published == 2
