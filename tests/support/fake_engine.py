"""A small server that speaks vLLM's OpenAI API, where the thing under test is the gateway."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


@dataclass
class FakeEngine:
    """Answers every prompt with ``answer``, word by word when streaming.

    The last message steers it: "fail" gives a 500, "refuse" a 400, "hang" never answers, "break"
    ends the connection in the middle of an answer.
    """

    answer: str = '{"intent": "order"}'
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def app(self) -> Starlette:
        routes = [Route(p, self.chat, methods=["POST"]) for p in ("/v1/chat/completions",)]
        return Starlette(routes=routes)

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        word = body["messages"][-1]["content"]
        if word == "fail":
            error = {"message": "out of memory", "type": "server_error", "code": None}
            return JSONResponse({"error": error}, 500)
        if word == "refuse":
            error = {"message": "bad", "type": "invalid_request_error", "code": None}
            return JSONResponse({"error": error}, 400)
        if word == "hang":
            await self.hang(request)
        if body.get("stream"):
            return StreamingResponse(self.events(word), media_type="text/event-stream")
        message = {"role": "assistant", "content": self.answer}
        return JSONResponse(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "model": body["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
            }
        )

    async def hang(self, request: Request) -> None:
        self.hanging.set()
        message = await request.receive()
        if message["type"] == "http.disconnect":
            self.cancelled.set()

    async def events(self, word: str) -> AsyncIterator[bytes]:
        words = self.answer.split(" ")
        for number, part in enumerate(words):
            text = part if number == len(words) - 1 else part + " "
            finish = "stop" if number == len(words) - 1 else None
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
            yield f"data: {json.dumps({'id': 'c', 'choices': [choice]})}\n\n".encode()
            await asyncio.sleep(0)
            if word == "break":
                raise ConnectionResetError("the engine died")
        yield b"data: [DONE]\n\n"
