"""The agent's methods: read the request, call the domain, shape the answer."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from gaggle.agent.v1 import agent_service_pb2 as api
from gaggle.agent.v1 import agent_service_pb2_grpc as api_grpc
from gaggle.agent.v1 import session_pb2
from services.agent import validation
from services.agent.chatting import Chats
from services.agent.models.catalog import Catalog
from services.agent.runs import unfinished_text
from services.agent.sessions import Sessions
from services.agent.store import AgentStore
from services.agent.turns import ENDED, Once, Turns, describe
from services.agent.watching import Watcher
from services.runtime.access import Access, user_or
from services.runtime.errors import InvalidArgumentError
from services.runtime.identity import current_caller
from services.runtime.validation import Violations

AGENT_ACCESS: dict[str, Access] = {"*": user_or("recipe")}


class AgentServicer(api_grpc.AgentServiceServicer):
    """Serves gaggle.agent.v1.AgentService."""

    def __init__(
        self, store: AgentStore, chats: Chats, turns: Turns, sessions: Sessions, watcher: Watcher, catalog: Catalog
    ) -> None:
        """All are the process's own."""
        self._store = store
        self._chats = chats
        self._turns = turns
        self._sessions = sessions
        self._watcher = watcher
        self._catalog = catalog

    async def Chat(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        validation.chat(request)
        async with aclosing(self._chats.chat(_user(), request)) as events:  # type: ignore[type-var]
            async for event in events:
                yield api.ChatResponse(event=event)

    async def WatchTurn(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: ARG002
        """See the contract."""
        violations = validation.named_turn(request.turn_id)
        violations.check(ok=request.after_position < 1 << 63, field="after_position", what="is no position")
        violations.raise_if_any()
        events = self._watcher.follow(_user(), request.turn_id, request.after_position)
        async with aclosing(events) as open_events:  # type: ignore[type-var]
            async for event in open_events:
                yield api.WatchTurnResponse(event=event)

    async def GetTurn(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named_turn(request.turn_id).raise_if_any()
        turn = await self._turns.get(_user(), request.turn_id)
        partial = ""
        if turn.status not in ENDED:
            partial = unfinished_text(await self._store.checkpoint(_user(), turn.id, turn.attempt))
        return api.GetTurnResponse(turn=describe(turn, partial))

    async def ListTurns(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.id("conversation_id", request.conversation_id, required=True)
        violations.raise_if_any()
        return await self._turns.page(_user(), request)

    async def CancelTurn(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named_turn(request.turn_id, request.request_id).raise_if_any()
        once = Once.of(_user(), "CancelTurn", request)
        return api.CancelTurnResponse(turn=describe(await self._chats.cancel(_user(), request.turn_id, once)))

    async def SetTurnPolicy(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.policy(request)
        await self._turns.set_policy(_user(), request)
        return api.SetTurnPolicyResponse()

    async def ApproveToolCall(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.call(request.turn_id, request.request_id, request.call_id)
        once = Once.of(_user(), "ApproveToolCall", request)
        turn = await self._chats.decide(_user(), request.turn_id, request.call_id, approve=True, once=once)
        return api.ApproveToolCallResponse(turn=describe(turn))

    async def DenyToolCall(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.call(request.turn_id, request.request_id, request.call_id, request.reason)
        once = Once.of(_user(), "DenyToolCall", request)
        turn = await self._chats.decide(
            _user(), request.turn_id, request.call_id, approve=False, reason=request.reason, once=once
        )
        return api.DenyToolCallResponse(turn=describe(turn))

    async def CreateSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.create_session(request)
        _known_model(self._catalog, request.settings.model)
        return api.CreateSessionResponse(session=await self._sessions.create(_user(), request))

    async def GetSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named_session(request.session_id).raise_if_any()
        return api.GetSessionResponse(session=await self._sessions.get(_user(), request.session_id))

    async def ListSessions(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        if request.status not in session_pb2.SessionStatus.values():
            raise InvalidArgumentError({"status": "must be a status"})
        return await self._sessions.page(_user(), request)

    async def UpdateSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.update_session(request)
        _known_model(self._catalog, request.settings.model)
        return api.UpdateSessionResponse(session=await self._sessions.update(_user(), request))

    async def EndSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named_session(request.session_id, request.request_id).raise_if_any()
        return api.EndSessionResponse(session=await self._sessions.end(_user(), request))

    async def DeleteSession(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.named_session(request.session_id, request.request_id).raise_if_any()
        await self._sessions.delete(_user(), request)
        return api.DeleteSessionResponse()

    async def ImportUsage(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        validation.import_usage(request)
        return api.ImportUsageResponse(session=await self._sessions.import_usage(_user(), request))

    async def ListUsage(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        return await self._sessions.usage(_user(), request)

    async def ListUsageEntries(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        violations = Violations()
        violations.id("session_id", request.session_id, required=False)
        violations.raise_if_any()
        return await self._sessions.usage_entries(_user(), request)

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: ARG002
        """See the contract."""
        models = [
            api.ModelInfo(
                name=one.name, context_tokens=one.context_tokens, tools=one.tools, description=one.description
            )
            for one in self._catalog.listed()
        ]
        return api.ListModelsResponse(models=models)


def _user() -> str:
    return current_caller().user_id


def _known_model(catalog: Catalog, name: str) -> None:
    try:
        catalog.find(name)
    except InvalidArgumentError:
        raise InvalidArgumentError({"settings.model": "there is no model of this name"}) from None
