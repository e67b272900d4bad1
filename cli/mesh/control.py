"""How `gaggle status`, `restart` and `down` reach the supervisor: one JSON line each way over a Unix socket.

The socket lies in a directory of mode 0700, which is all the access control there is.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from cli.errors import CommandError, NotRunning

# A rolling restart of a service with several replicas is the longest answer there is.
_ANSWER_SECONDS = 180.0

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class ControlServer:
    """Answers requests on the control socket.

    Args:
        path: where the socket lies.
        handle: turns a request into an answer; a CommandError becomes {"error": text}.
    """

    def __init__(self, path: Path, handle: Handler) -> None:
        self._path = path
        self._handle = handle
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begins to listen, in place of a supervisor that is gone."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._answer, self._path)

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that went away has no use for an answer.
        with contextlib.suppress(OSError, ValueError):
            try:
                answer = await self._handle(json.loads(await reader.readline()))
            except CommandError as error:
                answer = {"error": str(error)}
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()


def ask(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Sends one request to the supervisor and returns its answer.

    Raises:
        NotRunning: nobody listens there.
        CommandError: the supervisor refused, or did not answer within three minutes.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(_ANSWER_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile() as answers:
                line = answers.readline()
        except TimeoutError as error:
            raise CommandError(f"The supervisor did not answer within {_ANSWER_SECONDS:.0f} s.") from error
        except OSError as error:
            raise NotRunning("No mesh runs there: start one with `gaggle up`.") from error
    if not line:
        raise NotRunning("The mesh is stopping.")
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        raise CommandError(str(answer["error"]))
    return answer
