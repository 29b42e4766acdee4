"""One completion under way inside the engine: the rows recorded for it so far.

The engine's thread only appends ``(position, step, row)``; everything else happens in the tap's
own thread. A later row of a position replaces the earlier one: a partly prefilled prompt makes
rows whose sample the engine discards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from capture.config import CaptureConfig
from capture.rows import Floats, Ints, LogitRow
from capture.schema import Flag


class TapConfig(CaptureConfig):
    """The tap's settings: those of ``[capture]`` and what the engine serves."""

    model_revision: str
    tokenizer_hash: str


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What was selected in one engine step, on the host: R rows, K candidates.

    Attributes:
        ids: Token ids, R x K.
        logprobs: Natural-log probabilities, R x K.
        size: Entries to keep of each row.
        tail_logprob: Log mass outside the kept entries.
    """

    ids: Ints
    logprobs: Floats
    size: Ints
    tail_logprob: Floats


@dataclass(slots=True, eq=False)
class Choice:
    """A tagged completion.

    Attributes:
        exchange_id: The tag the gateway sent.
        index: Number among the completions of the same exchange, in order of arrival.
        prompt_ids: Prompt tokens.
        output_ids: The engine's own, live list of generated tokens; we only read it.
        stop_ids: Tokens that end the completion.
        max_tokens: Length that ends the completion.
        flags: What was done to the logits before they were recorded.
        touched_at: Monotonic seconds of the last recorded row.
        is_scheduled: Whether it was in the engine's batch when the tap last looked.
        written_length: Positions already handed to the spool.
        is_closed: Whether the recorder has let go of it.
    """

    exchange_id: str
    index: int
    prompt_ids: Sequence[int]
    output_ids: list[int]
    stop_ids: frozenset[int]
    max_tokens: int
    flags: Flag
    touched_at: float
    is_scheduled: bool = True
    written_length: int = 0
    is_closed: bool = False
    rows: list[tuple[Step, int]] = field(default_factory=list)

    def record(self, position: int, step: Step, row: int) -> None:
        """Keep one row; a gap before it makes the choice incomplete."""
        if position > len(self.rows):
            self.flags |= Flag.INCOMPLETE
            return
        del self.rows[position:]
        self.rows.append((step, row))

    @property
    def has_ended(self) -> bool:
        """Whether the last recorded position was this completion's last."""
        length = len(self.rows)
        if not length or len(self.output_ids) < length:
            return False
        return length >= self.max_tokens or self.output_ids[length - 1] in self.stop_ids

    def completion_ids(self) -> list[int]:
        """Generated tokens that have a recorded row; placeholders of unsampled ones are not."""
        return [token for token in self.output_ids[: len(self.rows)] if token >= 0]

    def to_row(self, config: TapConfig, day: str) -> LogitRow:
        """Gather the recorded positions into one row of the log; ``day`` is UTC, YYYY-MM-DD."""
        completion = self.completion_ids()
        rows = self.rows[: len(completion)]
        sizes = [int(step.size[row]) for step, row in rows]
        kept = [(step, row, size) for (step, row), size in zip(rows, sizes, strict=True)]
        return LogitRow(
            exchange_id=self.exchange_id,
            day=day,
            choice=self.index,
            source="tap",
            model_revision=config.model_revision,
            tokenizer_hash=config.tokenizer_hash,
            prompt_ids=np.asarray(self.prompt_ids, np.int32),
            completion_ids=np.asarray(completion, np.int32),
            topk_size=np.asarray(sizes, np.int16),
            topk_ids=np.concatenate([step.ids[row, :size] for step, row, size in kept]),
            topk_logprobs=np.concatenate([step.logprobs[row, :size] for step, row, size in kept]),
            tail_logprob=np.asarray([step.tail_logprob[row] for step, row, _ in kept], np.float32),
            tail_draws=np.empty(0, np.int32),
            flags=int(self.flags),
            k_max=config.k_max,
            mass=config.mass,
        )
