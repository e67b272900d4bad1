"""What the owner of recipes and executions does for the mesh: revisions, events told again, erasure, waking."""

import json
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from gaggle.owner.v1 import owner_service_pb2 as owner_api
from gaggle.recipe.state.v1 import document_pb2
from gaggle.recipe.v1 import execution_service_pb2
from gaggle.recipe.v1 import recipe_service_pb2 as api
from services.recipe.executions import ENDED, Executions
from services.recipe.repository import Repository
from services.runtime import paging
from services.runtime.callbacks import Outcome, TopicEvent
from services.runtime.entities import TOMBSTONE_SECONDS, Entities
from services.runtime.errors import GaggleError, InvalidArgumentError, NotFoundError
from services.runtime.owning import REVISIONS_PAGE
from services.runtime.state import CommitFailedError, Remove
from services.runtime.users import Users

_REMOVED_AT_ONCE = 50
_log = structlog.get_logger()

Wake = Callable[[bytes], Awaitable[None]]


class Owner:
    """Walks what there is."""

    def __init__(self, users: Users, repository: Repository, executions: Executions, wake: Wake) -> None:
        """`wake` takes a serialized Nudge."""
        self._users = users
        self._repository = repository
        self._executions = executions
        self._wake = wake
        self._kinds: dict[str, Entities[Any]] = {
            "recipe": repository.entities,
            "execution": executions.entities,
        }

    # -- for reconciliation and rebuild

    async def users(self, request: owner_api.ListUsersRequest) -> owner_api.ListUsersResponse:
        """List the users."""
        return await self._users.list(request)

    async def revisions(self, request: owner_api.ListRevisionsRequest) -> owner_api.ListRevisionsResponse:
        """List a user's recipes, then the executions, with their revisions, tombstones included."""
        if not request.user_id:
            raise InvalidArgumentError({"user_id": "must be set"})
        size = paging.page_size(request.page_size, default=REVISIONS_PAGE, most=REVISIONS_PAGE)
        scope = ("ListRevisions", request.user_id)
        cursor = paging.decode(request.page_token, *scope)
        names = list(self._kinds)
        kind = names.index(str(cursor["n"])) if cursor else 0
        place = (int(cursor["b"]), int(cursor["p"])) if "b" in cursor else (None, None)
        limit = datetime.now(UTC) - timedelta(seconds=TOMBSTONE_SECONDS)
        entities = self._kinds[names[kind]]
        wanted: list[str] = []
        after = ""
        async for bucket, position, entry in entities.newest_first(request.user_id, bucket=place[0], position=place[1]):
            if entry.HasField("delete_time") and entry.delete_time.ToDatetime(UTC) < limit:
                continue
            if len(wanted) == size:
                after = paging.encode({"n": names[kind], "b": bucket, "p": position}, *scope)
                break
            wanted.append(entry.entity_id)
        if not after and kind + 1 < len(names):
            after = paging.encode({"n": names[kind + 1]}, *scope)
        found = await entities.revisions(request.user_id, wanted)
        return owner_api.ListRevisionsResponse(
            revisions=[
                owner_api.EntityRevision(
                    entity_type=names[kind],
                    entity_id=one.id,
                    revision=one.revision,
                    incarnation=one.incarnation,
                    deleted=one.HasField("delete_time"),
                )
                for one in found
            ],
            next_page_token=after,
        )

    async def republish(self, request: owner_api.RepublishEventsRequest) -> owner_api.RepublishEventsResponse:
        """Publish the events of some revisions again."""
        entities = self._kinds.get(request.entity_type)
        if entities is None:
            raise InvalidArgumentError({"entity_type": f"must be one of {', '.join(self._kinds)}"})
        published = await entities.republish(
            request.user_id, request.entity_id, request.first_revision, request.last_revision
        )
        return owner_api.RepublishEventsResponse(published=published)

    # -- events

    async def on_tool_executed(self, events: Sequence[TopicEvent]) -> list[Outcome]:
        """Wake the execution that waited for a turn whose tool has been approved or denied."""
        return [await self._guard(event, self._decided) for event in events]

    async def _guard(self, event: TopicEvent, handle: Callable[[str, dict[str, Any]], Awaitable[None]]) -> Outcome:
        try:
            body = json.loads(event.data)
            await handle(body["userId"], body["data"])
        except (ValueError, KeyError, TypeError) as error:
            _log.warning("event_not_readable", topic=event.topic, id=event.id, error=str(error))
            return Outcome.DROP
        except (GaggleError, CommitFailedError) as error:
            _log.warning("event_put_off", topic=event.topic, id=event.id, error=str(error))
            return Outcome.RETRY
        return Outcome.SUCCESS

    async def _decided(self, user_id: str, data: dict[str, Any]) -> None:
        turn_id = str(data.get("turnId", ""))
        if not turn_id.startswith("recipe-"):
            return
        item = await self._executions.state.get(self._executions.waiting_key(user_id, turn_id))
        if item is not None:
            waiting = document_pb2.Waiting.FromString(item.value)
            work = document_pb2.Nudge(user_id=user_id, execution_id=waiting.execution_id)
            await self._wake(work.SerializeToString())

    async def empty(self, user_id: str) -> int:
        """Close a user and take away all there is; gives how many recipes and executions that were."""
        items = 0
        for entities in self._kinds.values():
            await entities.close(user_id)
        async for _, _, entry in self._executions.entities.newest_first(user_id):
            items += await self._erase_execution(user_id, entry.entity_id)
        async for _, _, entry in self._repository.entities.newest_first(user_id):
            request = api.DeleteRecipeRequest(recipe_id=entry.entity_id)
            try:
                await self._repository.delete(user_id, request, cause="erased")
            except NotFoundError:
                continue
            items += 1
        return items

    async def _erase_execution(self, user_id: str, execution_id: str) -> int:
        head = await self._executions.entities.find(user_id, execution_id)
        if head is None:
            return 0
        if head.execution.status not in ENDED:
            request = execution_service_pb2.CancelExecutionRequest(execution_id=execution_id)
            await self._executions.cancel(user_id, request)
            await self._wake(document_pb2.Nudge(user_id=user_id, execution_id=execution_id).SerializeToString())
        keys = [self._executions.step_key(user_id, execution_id, step.id) for step in head.steps]
        keys.append(self._executions.plan_key(user_id, execution_id))
        for start in range(0, len(keys), _REMOVED_AT_ONCE):
            await self._executions.state.commit(Remove(key) for key in keys[start : start + _REMOVED_AT_ONCE])
        await self._executions.state.commit([Remove(self._executions.entities.key(user_id, execution_id))])
        return 1
