"""LangGraph's AsyncPostgresSaver on the same PostgreSQL: a thread's messages as one checkpointed channel."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.graph import END, START, MessagesState, StateGraph
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from bench.clients.client import CONNECTIONS, WINDOW, Spec
from bench.texts import role, texts


class LangGraph:
    """Reads by `aget_state` of a graph; appends by `aput` of a state that the program has at hand already.

    The second is kinder than `aupdate_state`, which reads the state first.
    """

    def __init__(self, pool: Any, saver: AsyncPostgresSaver, spec: Spec) -> None:
        """`saver` uses `pool`."""
        self._pool = pool
        self._saver = saver
        self._spec = spec
        graph = StateGraph(MessagesState)
        graph.add_node("agent", lambda _state: {"messages": []})
        graph.add_edge(START, "agent")
        graph.add_edge("agent", END)
        self._graph = graph.compile(checkpointer=saver)
        self._at_hand: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
        self._message = HumanMessage(texts(1)[0], id="new")
        self._version = 1

    async def prepare(self, history: int) -> None:
        """See Client."""
        for caller in range(min(self._spec.pools[str(history)], 32)):
            thread = _thread(history, caller)
            config: dict[str, Any] = {"configurable": {"thread_id": thread, "checkpoint_ns": ""}}
            messages = [_message(index, text) for index, text in enumerate(texts(history))]
            checkpoint: dict[str, Any] = {**empty_checkpoint(), "channel_values": {"messages": messages}}
            checkpoint["channel_versions"] = {"messages": "1"}
            await self._saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {"messages": "1"})
            self._at_hand[thread] = (config, checkpoint)
        assert len(await self._messages(history)) == WINDOW

    async def _messages(self, history: int) -> list[AnyMessage]:
        state = await self._graph.aget_state({"configurable": {"thread_id": _thread(history, 0)}})
        messages: list[AnyMessage] = state.values["messages"]
        return messages[-WINDOW:]

    async def read(self, history: int, caller: int) -> None:  # noqa: ARG002
        """See Client."""
        await self._messages(history)

    async def append(self, history: int, caller: int) -> None:
        """See Client."""
        config, checkpoint = self._at_hand[_thread(history, caller)]
        self._version += 1
        versions = {"messages": str(self._version)}
        new = {
            **checkpoint,
            "id": empty_checkpoint()["id"],
            "channel_values": {"messages": [*checkpoint["channel_values"]["messages"], self._message]},
            "channel_versions": versions,
        }
        await self._saver.aput(config, new, {"source": "loop", "step": 2}, versions)

    async def reset(self, history: int) -> None:
        """See Client. Each append left a checkpoint and a copy of the channel of its own."""
        async with self._pool.connection() as connection:
            for table, column, own in (
                ("checkpoints", "checkpoint_id", [one["id"] for _, one in self._at_hand.values()]),
                ("checkpoint_blobs", "version", ["1"]),
            ):
                await connection.execute(
                    f"DELETE FROM {table} WHERE thread_id LIKE %s AND NOT {column} = ANY(%s)",  # noqa: S608
                    (f"thread-{history}-%", own),
                )


def _message(index: int, text: str) -> AnyMessage:
    kind = AIMessage if role(index) == "assistant" else HumanMessage
    return kind(text, id=f"m{index}")


def _thread(history: int, caller: int) -> str:
    return f"thread-{history}-{caller}"


@contextlib.asynccontextmanager
async def connect(spec: Spec) -> AsyncIterator[LangGraph]:
    """Connect."""
    options = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row, "options": "-c search_path=bench"}
    async with AsyncConnectionPool(
        spec.database_url, min_size=CONNECTIONS, max_size=CONNECTIONS, kwargs=options, open=False
    ) as pool:
        async with pool.connection() as connection:
            await connection.execute("CREATE SCHEMA IF NOT EXISTS bench")
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield LangGraph(pool, saver, spec)
