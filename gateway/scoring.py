"""A process beside a mirror: asks the candidate to score what its incumbent has answered.

The answer's token ids are in the row that was spooled for it. What the candidate makes of them
comes as megabytes of JSON, which is read here so that no client's answer waits for it.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson
import uvloop

from capture.adaptive import Limits
from capture.config import CaptureConfig
from capture.divergence import Side, token_kl_nats
from capture.revision import tokenizer_hash
from capture.rows import LogitRow, encode_logits
from capture.scores import prompt_scores
from capture.tail import SpoolTail
from capture.wire import TOP
from capture.writer import Spool, SpoolLimits
from gateway.awaited import MAX_TOKENS, AwaitedRows
from gateway.channel import Channel, Handler
from gateway.errors import GatewayError
from gateway.upstream import Upstream

COMPLETIONS = "/v1/completions"
EVERY = Limits(TOP + 1, TOP + 1, 1.0)  # entry that is told: the likeliest and the one that is there
HEADERS = {"content-type": "application/json"}
CONNECT_SECONDS = 5.0
SECONDS = 30.0
MAX_ANSWER_BYTES = 32 * 1024 * 1024
OK = 200
UNKNOWN = "unknown"
STRANGE = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # of JSON as it comes
Unfit = Literal["unseen", "flagged", "too_long", "other_tokenizer"]
Row = dict[str, Any]
Outcome = Literal["scored", "failed", "timeout"]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ScoringPlan:
    """What the process is given.

    Attributes:
        captured: Names the spool that the incumbent's rows come to, and ours go to.
        bundle: The candidate's folder.
        revision: Of its weights.
        pair: Our end of the pair that we talk over.
    """

    captured: CaptureConfig
    bundle: Path
    revision: str | None
    pair: socket.socket


@dataclass(frozen=True, slots=True)
class ScoreTask:
    """One answer to be scored.

    Attributes:
        exchange_id: Whose answer.
        num_choices: How many it has.
        shadow_id: The exchange that the scores belong to.
        model: What the candidate calls its model.
        salt: What keeps a tenant's cached prefixes its own.
    """

    exchange_id: str
    num_choices: int
    shadow_id: str
    model: str
    salt: str | None


@dataclass(frozen=True, slots=True)
class Scored:
    """What became of it.

    Attributes:
        outcome: In a word.
        kl_nats: KL(incumbent || candidate) per token, if it was scored.
    """

    outcome: Outcome
    kl_nats: float | None = None


def work(plan: ScoringPlan) -> None:
    """Score what we are told to, until the gateway closes the channel or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway says what it means for us
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvloop.run(_work(plan))


async def _work(plan: ScoringPlan) -> None:
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    captured = plan.captured
    limits = SpoolLimits(captured.sync_seconds, captured.segment_bytes, captured.segment_seconds)
    spool = Spool(captured.spool, "logits", encode_logits, limits=limits)
    upstream = Upstream.create()
    awaited = AwaitedRows(SpoolTail(captured.spool, "logits"))
    scoring = Scoring(plan, awaited, spool, upstream)
    handlers: dict[str, Handler] = {
        "expect": awaited.expect,
        "forget": awaited.forget,
        "find": scoring.find,
        "score": scoring.score,
    }
    channel = await Channel.opened(plan.pair, handlers)
    works = (awaited.follow(), channel.run(), ended.wait())
    tasks = [asyncio.ensure_future(each) for each in works]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await upstream.close()
    spool.close()


class Scoring:
    """Finds answers and lets the candidate score them."""

    def __init__(
        self, plan: ScoringPlan, awaited: AwaitedRows, spool: Spool[LogitRow], upstream: Upstream
    ) -> None:
        self._plan = plan
        self._awaited = awaited
        self._spool = spool
        self._upstream = upstream
        self._tokenizer_hash = tokenizer_hash(plan.bundle)

    async def find(self, task: ScoreTask) -> Unfit | None:
        """Wait for an expected exchange's rows; returns why it cannot be scored, if it cannot."""
        found = await self._awaited.wait(task.exchange_id, task.num_choices)
        rows = [row for batch in found if batch is not None for row in batch.to_pylist()]
        num_tokens = sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in rows)
        if not found:
            return "unseen"
        if len(rows) < len(found) or num_tokens > MAX_TOKENS:
            return "too_long"
        if any(row["flags"] for row in rows):
            return "flagged"
        if any(row["tokenizer_hash"] != self._tokenizer_hash for row in rows):
            return "other_tokenizer"
        return None

    async def score(self, carried: tuple[ScoreTask, str]) -> Scored:
        """Ask an engine of the candidate's about what was found fit, and record what it says."""
        task, url = carried
        found = await self._awaited.wait(task.exchange_id, task.num_choices)
        rows = [row for batch in found if batch is not None for row in batch.to_pylist()]
        try:
            async with asyncio.timeout(SECONDS):
                document = await self._ask(task, url, rows)
            choices = sorted(document["choices"], key=lambda choice: choice["index"])
            scored = [self._scored(task, *each) for each in zip(rows, choices, strict=True)]
        except TimeoutError:
            return Scored("timeout")
        except (GatewayError, *STRANGE) as error:
            logger.warning("the candidate did not score an answer: %s", type(error).__name__)
            return Scored("failed")
        kl_nats: list[float] = []
        for row, one in zip(rows, scored, strict=True):
            self._spool.account.start()
            self._spool.offer(one, one.num_bytes)
            kl_nats += token_kl_nats(_side(row), _side_of(one))
        return Scored("scored", float(np.mean(kl_nats)))

    async def _ask(self, task: ScoreTask, url: str, rows: list[Row]) -> Any:  # noqa: ANN401  JSON
        """The engine's answer.

        Raises:
            GatewayError: If it cannot be reached or breaks off.
            ValueError: If it refuses, or says too much or no JSON.
        """
        body: dict[str, object] = {
            "model": task.model,
            "prompt": [[*row["prompt_ids"], *row["completion_ids"]] for row in rows],
            "max_tokens": 1,
            "temperature": 0.0,
            "prompt_logprobs": TOP,
        }
        if task.salt is not None:
            body["cache_salt"] = task.salt
        asked, address, said = orjson.dumps(body), url + COMPLETIONS, bytearray()
        async with self._upstream.post(address, asked, HEADERS, CONNECT_SECONDS) as response:
            if response.status != OK:
                raise ValueError(f"status {response.status}")
            async for chunk in response.content.iter_any():
                said += chunk
                if len(said) > MAX_ANSWER_BYTES:
                    raise ValueError("the answer is too long")
        return orjson.loads(said)

    def _scored(self, task: ScoreTask, row: Row, choice: Mapping[str, Any]) -> LogitRow:
        """The log's row of one choice.

        Raises:
            ValueError: If not each of its tokens was scored.
        """
        scores = prompt_scores(choice["prompt_logprobs"][len(row["prompt_ids"]) :], EVERY)
        if len(scores.topk_size) != len(row["completion_ids"]) or not scores.topk_size.all():
            raise ValueError("tokens without a score")
        return LogitRow(
            exchange_id=task.shadow_id,
            day=datetime.now(UTC).strftime("%Y-%m-%d"),
            choice=row["choice"],
            source="score",
            model_revision=self._plan.revision or UNKNOWN,
            tokenizer_hash=self._tokenizer_hash,
            prompt_ids=np.array(row["prompt_ids"], np.int32),
            completion_ids=np.array(row["completion_ids"], np.int32),
            topk_size=scores.topk_size,
            topk_ids=scores.topk_ids,
            topk_logprobs=scores.topk_logprobs,
            tail_logprob=scores.tail_logprob,
            tail_draws=np.empty(0, np.int32),
            flags=0,
            k_max=EVERY.k_max,
            mass=EVERY.mass,
        )


def _side(row: Row) -> Side:
    return Side(**{name: row[name] for name in Side.__dataclass_fields__})


def _side_of(row: LogitRow) -> Side:
    return Side(**{name: getattr(row, name).tolist() for name in Side.__dataclass_fields__})
