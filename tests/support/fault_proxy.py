"""A proxy that fails some of the requests that it passes to an HTTP server, as object stores and networks do."""

import http.client
import random
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_SLOW_DOWN = (
    b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)


class FaultProxy:
    """Passes requests on, and fails each with some probability: 503, or a connection that is dropped before the request
    is passed on, after it, or in the middle of the response.

    Args:
        server: The URL of the server.
        probability: Of each of the four faults.
        seed: Decides which requests fail.

    Attributes:
        url: The URL of the proxy.
        faults: The number of faults of each kind so far.
        on_request: Called at each request; if it returns a code, the request is refused with that code of S3.
    """

    def __init__(self, server: str, probability: float = 0.05, seed: int = 0) -> None:
        target = urlsplit(server)
        draw, lock = random.Random(seed), threading.Lock()
        self.faults = dict.fromkeys(("slow down", "before", "after", "middle"), 0)
        faults = self.faults
        self.on_request: Callable[[], str] = str
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock:
                    kind = int(draw.random() / probability) if probability else len(faults)
                    fault = [*faults, *[""] * len(faults)][min(kind, len(faults))] if kind < len(faults) else ""
                    if fault:
                        faults[fault] += 1
                if code := proxy.on_request():
                    return self.respond(403, {}, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())
                if fault == "before":
                    return self.drop()
                if fault == "slow down":
                    return self.respond(503, {}, _SLOW_DOWN)
                connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
                connection.request(self.command, self.path, body, dict(self.headers))
                response = connection.getresponse()
                data = response.read()
                connection.close()
                if fault == "after":
                    return self.drop()
                self.respond(response.status, dict(response.headers), data, cut=fault == "middle" and len(data) > 1)
                return None

            def respond(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
                self.send_response(status)
                length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
                for name, value in headers.items():
                    if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data[: len(data) // 2] if cut else data)
                if cut:
                    self.drop()

            def drop(self) -> None:
                self.wfile.flush()
                self.close_connection = True
                self.connection.shutdown(2)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_any  # noqa: N815  (names of the standard library)

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:  # a client that was killed
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Ends the proxy."""
        self._server.shutdown()
        self._server.server_close()
