"""Rollouts as rows of a log of their own, in a folder that ``retort log`` reads and checks."""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from capture.commit import Committer
from capture.config import CaptureConfig
from capture.intake import EXCHANGE_BYTES, offer_all
from capture.log import Log
from capture.rows import ExchangeRow, LogitRow, encode_exchanges, encode_logits
from capture.scores import Scores
from capture.writer import Spool, SpoolLimits
from trainer.answering import Answer, Sampling
from trainer.dataset import Ragged
from trainer.errors import DatasetError
from trainer.scoring import LIMITS

SOURCE = "rollout"
CONFIG = """\
# retort log verify -c retort.toml: rollouts of a student, made by `retort distill rollouts`.
[capture]
log = "."
spool = "spool"
"""


@dataclass(frozen=True, slots=True)
class Origin:
    """The exchange of the log whose prompt was asked.

    Attributes:
        request: Its JSON.
    """

    exchange_id: str
    route: str
    request: str


@dataclass(frozen=True, slots=True)
class Models:
    """Who answers and who scores.

    Attributes:
        name: Of the student.
    """

    name: str
    student_revision: str
    teacher_revision: str
    tokenizer_hash: str


class RolloutLog:
    """Adds rows to a folder's log; a context that commits them when it ends, however it ends."""

    def __init__(self, folder: Path, models: Models, sampling: Sampling) -> None:
        self._config = CaptureConfig(log=folder, spool=folder / "spool")
        self._models = models
        self._params = json.dumps(
            {"temperature": sampling.temperature, "max_tokens": sampling.max_new_tokens}
        )
        (folder / "retort.toml").write_text(CONFIG, encoding="utf-8")
        Committer(self._config).commit()  # what an interrupted call has left in the spool
        limits = SpoolLimits()
        self._exchanges = Spool(self._config.spool, "exchanges", encode_exchanges, limits=limits)
        self._logits = Spool(self._config.spool, "logits", encode_logits, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Commit what was added.

        Raises:
            DatasetError: If the disk refused some of it.
        """
        self._logits.close()
        self._exchanges.close()
        Committer(self._config).commit()
        dropped = self._logits.account.num_dropped + self._exchanges.account.num_dropped
        if dropped and error is None:
            raise DatasetError(
                f"{dropped} rows did not reach {self._config.log}: see to its disk and run again"
            )

    def answered(self) -> set[bytes]:
        """Prompts that have been answered, as int32 bytes."""
        log = Log(self._config.log)
        column = log.read(log.snapshot(), ["prompt_ids"])["prompt_ids"]
        prompts = Ragged.from_column(column)
        rows = (prompts.row(index) for index in range(len(column)))
        return {np.asarray(row, np.int32).tobytes() for row in rows}

    def add(
        self,
        origins: Sequence[Origin],
        answers: Sequence[Answer],
        texts: Sequence[str],
        scores: Sequence[Scores],
    ) -> None:
        """Add answers, each as an exchange of its own; distributions first."""
        now = datetime.now(UTC)
        ids = [uuid.uuid4().hex for _ in answers]
        offer_all(
            self._logits,
            [self._logit_row(*row, now) for row in zip(ids, answers, scores, strict=True)],
            lambda row: row.num_bytes,
        )
        offer_all(
            self._exchanges,
            [
                self._exchange_row(*row, now)
                for row in zip(ids, origins, answers, texts, strict=True)
            ],
            lambda _: EXCHANGE_BYTES,
        )

    def _logit_row(
        self, exchange_id: str, answer: Answer, scores: Scores, now: datetime
    ) -> LogitRow:
        return LogitRow(
            exchange_id=exchange_id,
            day=now.strftime("%Y-%m-%d"),
            choice=0,
            source=SOURCE,
            model_revision=self._models.teacher_revision,
            tokenizer_hash=self._models.tokenizer_hash,
            prompt_ids=answer.prompt_ids,
            completion_ids=answer.completion_ids,
            topk_size=scores.topk_size,
            topk_ids=scores.topk_ids,
            topk_logprobs=scores.topk_logprobs,
            tail_logprob=scores.tail_logprob,
            tail_draws=np.empty(0, np.int32),
            flags=0,
            k_max=int(scores.topk_size.max()),
            mass=LIMITS.mass,
        )

    def _exchange_row(
        self, exchange_id: str, origin: Origin, answer: Answer, text: str, now: datetime
    ) -> ExchangeRow:
        return ExchangeRow(
            exchange_id=exchange_id,
            day=now.strftime("%Y-%m-%d"),
            started_at=now,
            route=origin.route,
            deployment=SOURCE,
            role="candidate",
            model=self._models.name,
            model_revision=self._models.student_revision,
            tenant=None,
            key_id=None,
            endpoint=SOURCE,
            stream=False,
            request=origin.request,
            response_text=[text],
            tool_calls=None,
            params=self._params,
            finish_reason=[answer.finish_reason],
            status="completed",
            http_status=None,
            error_type=None,
            prompt_tokens=len(answer.prompt_ids),
            completion_tokens=len(answer.completion_ids),
            ttft_ms=None,
            duration_ms=0.0,
            capture=SOURCE,
            pair_id=origin.exchange_id,
        )
