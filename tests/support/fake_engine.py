"""A small server that speaks vLLM's OpenAI API, where the thing under test is the gateway."""

import asyncio
import math
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.fake_sleep import Sleep

Body = dict[str, Any]
PROMPT_IDS = [5, 6, 7]
ERRORS = {
    "fail": (500, "server_error", "out of memory"),
    "refuse": (400, "invalid_request_error", "bad"),
    "unserved": (503, "server_error", "not now"),
    "unknown": (400, "invalid_request_error", "unknown field"),
}
FLOOD = b'data: {"choices": [{"index": 0, "delta": {"content": "' + b"x" * 32_768 + b'"}}]}\n\n'


def top_of(number: int, as_ids: object) -> list[tuple[str, float]]:
    """The distribution at the answer's n-th word: the sampled token first, as vLLM has it."""
    likely = [(100 + number, -1.5), (200 + number, -0.4), (300 + number, -3.0)]
    name = "token_id:{}" if as_ids else "word{}"
    return [(name.format(token), logprob) for token, logprob in likely]


def half() -> Body:
    return {"logprob": math.log(1 / 2), "rank": 1}


def third() -> Body:
    return {"logprob": math.log(1 / 3), "rank": 2}


def chat_extras(body: Body, *numbers: int) -> Body:
    """What a chat's choice holds besides its text, for some of its words."""
    extras: Body = {"logprobs": None, "token_ids": None}
    if body.get("logprobs"):
        tops = [top_of(number, body.get("return_tokens_as_token_ids")) for number in numbers]
        shown = [[{"token": t, "logprob": p, "bytes": None} for t, p in top] for top in tops]
        num = body["top_logprobs"]
        extras["logprobs"] = {"content": [{**top[0], "top_logprobs": top[:num]} for top in shown]}
    if body.get("return_token_ids"):
        extras["token_ids"] = [100 + number for number in numbers]
    return extras


@dataclass
class FakeEngine:
    """Answers every prompt with ``answer``, word by word when streaming.

    The last message steers it: "fail" gives a 500, "refuse" a 400, "hang" never answers, "break"
    ends the connection in the middle of an answer, "pause" sends its beginning and no more,
    "redirect" points elsewhere, "echo ..." gives back what follows, "flood" streams without end,
    "vanish" ends the connection after the head of an answer, "unserved" gives a 503, "slow" takes
    its time for each word of a stream, "garbage" gives what is no JSON, "die" ends the process. A
    word among its ``spells`` steers it whatever the messages say. A message with "rare" in it gets
    ``rare_answer``, if there is one. Each word of a stream takes ``pace_seconds``, every answer
    ``answer_seconds`` before; ``name`` is the id of its answers. One that ``is_nan`` cannot say its
    logprobs. Asked to score given tokens, it does what ``scoring`` says. While it sleeps nobody
    gets an answer. While the file ``hold`` exists, it completes no prompt. Asked for logprobs and
    token ids, it adds them where vLLM does; one that is not ``knows_ids`` refuses fields it does
    not know.
    """

    answer: str = '{"intent": "order"}'
    knows_ids: bool = True
    name: str = "c"
    rare_answer: str | None = None
    pace_seconds: float = 0.0
    answer_seconds: float = 0.0
    is_nan: bool = False
    scoring: str = ""
    hold: Path | None = None
    spells: set[str] = field(default_factory=set)
    bodies: list[dict[str, object]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sleep: Sleep = field(default_factory=Sleep)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)
    flooded: int = 0

    @property
    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/health", self.health),
                *self.sleep.routes,
            ]
        )

    async def health(self, _: Request) -> Response:
        return Response()

    async def chat(self, request: Request) -> Response:
        await self.sleep.awake.wait()
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        word = next(iter(self.spells), body["messages"][-1]["content"])
        refused = self.refused(word, body)
        if refused is not None:
            return refused
        await asyncio.sleep(self.answer_seconds)
        if word == "hang":
            await self.hang(request)
        if body.get("stream"):
            return StreamingResponse(self.events(word, body), media_type="text/event-stream")
        said = self.said(body)
        message = {"role": "assistant", "content": said}
        words = range(len(said.split(" ")))
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse(
            {
                "id": self.name,
                "object": "chat.completion",
                "model": body["model"],
                "prompt_token_ids": PROMPT_IDS if body.get("return_token_ids") else None,
                "choices": [{**choice, **chat_extras(body, *words)}],
                "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            }
        )

    def said(self, body: Body) -> str:
        is_rare = self.rare_answer is not None and "rare" in body["messages"][-1]["content"]
        return self.rare_answer if is_rare and self.rare_answer is not None else self.answer

    def refused(self, word: str, body: Body) -> Response | None:
        """What is answered instead of a completion, if anything."""
        if word == "die":
            os._exit(137)
        if word == "garbage":
            return Response(os.urandom(65_536), media_type="application/json")
        if word == "redirect":
            return RedirectResponse("http://169.254.169.254/", 307)
        if word == "vanish":
            return StreamingResponse(self.nothing(), headers={"content-length": "100"})
        if word.startswith("echo "):
            return JSONResponse({"choices": [{"index": 0, "message": {"content": word[5:]}}]})
        is_unknown = not self.knows_ids and "return_token_ids" in body
        status, kind, message = ERRORS.get("unknown" if is_unknown else word, (0, "", ""))
        error = {"message": message, "type": kind, "code": None}
        return JSONResponse({"error": error}, status) if status else None

    async def nothing(self) -> AsyncIterator[bytes]:
        for piece in list[bytes]():
            yield piece
        raise ConnectionResetError("the engine died")

    async def complete(self, request: Request) -> Response:
        if self.hold is not None and self.hold.exists():
            return Response(status_code=500)
        await self.sleep.awake.wait()
        body = await request.json()
        self.bodies.append(body)
        if body.get("prompt_logprobs"):
            if self.scoring == "hang":
                await self.hang(request)
            return self.refused(self.scoring, body) or self.scored(body)
        words = range(len(self.answer.split(" ")))
        if self.is_nan and body.get("logprobs") is not None:
            message = "Out of range float values are not JSON compliant"
            return JSONResponse({"error": {"message": message, "type": "BadRequestError"}}, 400)
        choice = {"index": 0, "text": self.answer, "finish_reason": "stop", "logprobs": None}
        if body.get("logprobs") is not None:
            named = body.get("return_tokens_as_token_ids")
            tops = [top_of(word, named) for word in words]
            choice["logprobs"] = {
                "tokens": [top[0][0] for top in tops],
                "token_logprobs": [top[0][1] for top in tops],
                "top_logprobs": [dict(top[: body["logprobs"]]) for top in tops],
            }
        choice["prompt_token_ids"] = PROMPT_IDS if body.get("return_token_ids") else None
        return JSONResponse({"id": "c", "model": body["model"], "choices": [choice]})

    def scored(self, body: Body) -> Response:
        """What it makes of given tokens: each has half of the mass, and token 1 a third."""
        said = [[{str(token): half(), "1": third()} for token in ids] for ids in body["prompt"]]
        choices = [
            {"index": index, "text": "", "prompt_logprobs": [None, *positions[1:]]}
            for index, positions in enumerate(said)
        ]
        return JSONResponse({"id": "c", "model": body["model"], "choices": choices[::-1]})

    async def hang(self, request: Request) -> None:
        self.hanging.set()
        message = await request.receive()
        if message["type"] == "http.disconnect":
            self.cancelled.set()

    async def events(self, word: str, body: Body) -> AsyncIterator[bytes]:
        while word == "flood":
            self.flooded += len(FLOOD)
            yield FLOOD
            await asyncio.sleep(0)
        words = self.said(body).split(" ")
        for number, part in enumerate(words):
            text = part if number == len(words) - 1 else part + " "
            finish = "stop" if number == len(words) - 1 else None
            choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
            event: Body = {"id": self.name, "choices": [{**choice, **chat_extras(body, number)}]}
            if not number:
                event["prompt_token_ids"] = PROMPT_IDS if body.get("return_token_ids") else None
            yield b"data: " + orjson.dumps(event) + b"\n\n"
            await asyncio.sleep(self.pace_seconds)
            if word == "break":
                raise ConnectionResetError("the engine died")
            if word == "slow":
                await asyncio.sleep(0.1)
            if word == "pause":
                self.hanging.set()
                await asyncio.Event().wait()
        yield b"data: [DONE]\n\n"
