"""Rollouts under traffic, as operators and apps see them."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from gateway.demo.prompts import Prompt
from gateway.demo.traffic import Client, Outcome, send
from gateway.demo.workspace import ROUTE, Workspace
from gateway.errors import DemoError

ENDED = frozenset({"live", "rolled_back"})
MAX_REQUESTS = 20_000
STARTING = 1  # requests at a time while the candidate's engine starts on the same cores


@dataclass(frozen=True, slots=True)
class Tried:
    """One rollout from start to end.

    Attributes:
        state: ``live`` or ``rolled_back``.
        deployment: Name of the candidate's deployment.
        history: What was decided, when and why.
        outcomes: Every client's request while it ran.
    """

    state: str
    deployment: str
    history: list[dict[str, object]]
    outcomes: tuple[Outcome, ...]

    @property
    def failures(self) -> int:
        """Requests that failed."""
        return sum(outcome.failure is not None for outcome in self.outcomes)

    @property
    def clients_affected(self) -> int:
        """Requests that failed or that the candidate answered."""
        return sum(
            outcome.failure is not None or outcome.deployment == self.deployment
            for outcome in self.outcomes
        )


class Operator:
    """The admin API, with the key from the gateway's folder."""

    def __init__(self, work: Workspace) -> None:
        key = (work.home / "run" / "admin.key").read_text(encoding="utf-8").strip()
        self._http = httpx.AsyncClient(
            base_url=work.admin_url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=600.0,
            trust_env=False,
            # The gateway closes what idles, perhaps just as we ask: each request has its own.
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def call(self, method: str, path: str, body: object = None) -> dict[str, object]:
        """Send one request.

        Raises:
            DemoError: If it is refused.
        """
        answer = await self._http.request(method, path, json=body)
        if not answer.is_success:
            raise DemoError(f"{method} {path}: {answer.status_code} {answer.text}")
        result: dict[str, object] = answer.json()
        return result

    async def incumbent_url(self) -> str:
        """Address of the first engine that answers the demo's route."""
        deployments = (await self.call("GET", "/admin/deployments"))["data"]
        found = deployments if isinstance(deployments, list) else []
        return next(str(one["engines"][0]["url"]) for one in found if one["role"] == "incumbent")

    async def close(self) -> None:
        """Close the connection."""
        await self._http.aclose()


async def try_bundle(
    work: Workspace,
    operator: Operator,
    bundle: Path,
    prompts: Iterator[Prompt],
    on_outcome: Callable[[Outcome, str], None],
) -> Tried:
    """Start a rollout and keep traffic flowing until it is live or rolled back.

    Raises:
        DemoError: If it is undecided after ``MAX_REQUESTS`` requests.
    """
    client = Client(work.url, ROUTE)
    outcomes: list[Outcome] = []
    state = "starting"

    def record(outcome: Outcome) -> None:
        outcomes.append(outcome)
        on_outcome(outcome, state)

    def has_ended(sent: int) -> bool:
        return state in ENDED or sent >= MAX_REQUESTS

    flowing = asyncio.create_task(
        send(client, prompts, stop=lambda _: False, on_outcome=record, concurrency=STARTING)
    )
    body = {"route": ROUTE, "bundle": str(bundle)}
    try:
        rollout = await operator.call("POST", "/admin/rollouts", body)
        flowing.cancel()
        flowing = asyncio.create_task(send(client, prompts, stop=has_ended, on_outcome=record))
        while state not in ENDED:
            if flowing.done():
                raise DemoError(f"the rollout is still in {state} after {MAX_REQUESTS} requests")
            rollout = await operator.call("GET", f"/admin/rollouts/{rollout['id']}")
            state = str(rollout["state"])
            await asyncio.sleep(0.2)
        await flowing
    finally:
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
        await client.close()
    history = (await operator.call("GET", f"/admin/rollouts/{rollout['id']}/history"))["data"]
    decisions = history if isinstance(history, list) else []
    return Tried(state, str(rollout["candidate"]), decisions, tuple(outcomes))
