"""Those whom a mesh under test talks to: a collector of traces, and a model that repeats the key that it was sent."""

import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc

_EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


class Collector:
    """Takes traces by OTLP, and keeps their bytes."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self._server = grpc.server(futures.ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers((self._Handler(self.taken),))
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        """Take no more."""
        self._server.stop(0)

    class _Handler(grpc.GenericRpcHandler):
        def __init__(self, taken: list[bytes]) -> None:
            self._taken = taken

        def service(self, handler_call_details: Any) -> Any:
            if handler_call_details.method != _EXPORT:
                return None
            return grpc.unary_unary_rpc_method_handler(self._take)

        def _take(self, request: bytes, _context: Any) -> bytes:
            self._taken.append(request)
            return b""


class EchoingModel:
    """Refuses every request, in words that hold the key."""

    def __init__(self, status: int) -> None:
        self.asked = 0
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                model.asked += 1
                key = self.headers.get("authorization", "").removeprefix("Bearer ")
                body = f'{{"error": {{"message": "Incorrect API key provided: {key}", "type": "x"}}}}'.encode()
                self.rfile.read(int(self.headers.get("content-length", 0)))
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_arguments: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
