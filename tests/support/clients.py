"""Clients of a gateway that ask at a steady pace, whatever becomes of their requests."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

CHAT = "/v1/chat/completions"
FIRST_SECONDS = 0.2
CLOSE = 5  # answers after a change


@dataclass
class Load:
    """What steady clients got, in the order of their requests.

    Attributes:
        answers: Status, deployment and seconds of each.
    """

    answers: list[tuple[int, str, float]] = field(default_factory=list)

    @property
    def statuses(self) -> set[int]:
        return {status for status, _, _ in self.answers}

    @property
    def deployments(self) -> list[str]:
        """Who answered, each once, in order of appearance; for other changes, again.

        Requests that are asked close together overtake each other: what the one before still
        answers right after a change is no change back.
        """
        found, changed_at = list[str](), 0
        for place, (_, name, _) in enumerate(self.answers):
            is_late = name in found[-2:-1] and place < changed_at + CLOSE
            if name not in found[-1:] and not is_late:
                found.append(name)
                changed_at = place
        return found

    @property
    def longest_seconds(self) -> float:
        return max(seconds for _, _, seconds in self.answers)


@asynccontextmanager
async def steady(url: str, model: str, per_second: float) -> AsyncIterator[Load]:
    """Ask so many times a second, each in a conversation of its own, until the context is left.

    Requests do not wait for each other. All have ended when the context has been left.
    """
    load, loop = Load(), asyncio.get_running_loop()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits) as client:

        async def ask(number: int) -> None:
            began = loop.time()
            messages = [{"role": "user", "content": f"hello {number}"}]
            body = {"model": model, "messages": messages, "max_tokens": 8, "temperature": 0}
            answer = await client.post(CHAT, json=body)
            name = answer.headers.get("x-retort-deployment", "none")
            load.answers[number] = (answer.status_code, name, loop.time() - began)

        async def ask_on() -> None:
            while True:
                load.answers.append((0, "none", 0.0))
                group.create_task(ask(len(load.answers) - 1))
                await asyncio.sleep(1 / per_second)

        async with asyncio.TaskGroup() as group:
            asking = group.create_task(ask_on())
            await asyncio.sleep(FIRST_SECONDS)
            yield load
            await asyncio.sleep(FIRST_SECONDS)
            asking.cancel()
