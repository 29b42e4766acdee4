"""A server of JSON documents in a thread of the test, for clients that do not run in its loop."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    path: str
    body: Json | None
    headers: dict[str, str]


@dataclass(frozen=True)
class Reply:
    document: Json = field(default_factory=dict)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def refusal(status: int) -> Reply:
    """An error as OpenAI's API has it."""
    return Reply({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status)


def models(names: list[str]) -> Reply:
    """The list of models."""
    found = [{"id": name, "object": "model", "created": 0, "owned_by": "t"} for name in names]
    return Reply({"object": "list", "data": found})


class Server(ThreadingHTTPServer):
    request_queue_size = 64  # clients that connect at once, while this process has no turn


@contextmanager
def json_server(respond: Callable[[Asked], Reply]) -> Iterator[str]:
    """Serve on a free loopback port; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(None)

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, asked: Json | None) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            reply = respond(Asked(self.path, asked, headers))
            body = json.dumps(reply.document).encode()
            self.send_response(reply.status)
            length = {"content-type": "application/json", "content-length": str(len(body))}
            for name, value in (length | reply.headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with Server(("127.0.0.1", 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.server_port}"
        finally:
            listener.shutdown()
            thread.join()
