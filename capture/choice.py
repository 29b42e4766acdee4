"""One completion under way inside the engine: what was recorded of it so far."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from capture.adaptive import Limits
from capture.config import CaptureConfig
from capture.piece import Piece
from capture.rows import LogitRow
from capture.schema import Flag

_serials = itertools.count()


class TapConfig(CaptureConfig):
    """The tap's settings: those of ``[capture]`` and what the engine serves."""

    model_revision: str
    tokenizer_hash: str

    @property
    def limits(self) -> Limits:
        """Of the entries kept of each distribution."""
        return Limits(self.k_min, self.k_max, self.mass)


@dataclass(slots=True, eq=False)
class Choice:
    """A tagged completion; the tap's thread alone adds to it.

    Attributes:
        exchange_id: The tag the gateway sent.
        index: Number among the completions of the same exchange, in order of arrival.
        prompt_ids: Prompt tokens.
        output_ids: Generated tokens: the engine's own, live list, which we only read, or, where
            ``refresh`` is given, what that found last.
        stop_ids: Tokens that end the completion.
        max_tokens: Length that ends the completion.
        flags: What was done to the logits before they were recorded.
        touched_at: Monotonic seconds of the last recorded row.
        is_scheduled: Whether it was in the engine's batch when the tap last looked.
        has_sampled: Whether the tap knows of a row of it, recorded or on its way; V2 only.
        written_length: Positions already handed to the spool.
        is_closed: Whether the recorder has let go of it.
        start: First position recorded here; an earlier choice, preempted, has those before it.
        refresh: Reads the tokens anew from where the engine keeps them.
        serial: Tells it apart from every other choice of this process.
        length: Positions recorded, 0 to length - 1.
        num_bytes: Size in memory of all pieces that came.
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
    has_sampled: bool = False
    written_length: int = 0
    is_closed: bool = False
    start: int = 0
    refresh: Callable[[], None] | None = None
    serial: int = field(default_factory=lambda: next(_serials))
    length: int = field(init=False)
    num_bytes: int = 0
    _refreshed_length: int = -1
    _pieces: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.length = self.start

    def extend(self, piece: Piece) -> None:
        """Add a piece; it replaces what was recorded from its first position on."""
        self.num_bytes += piece.num_bytes
        if piece.first > self.length:
            self.flags |= Flag.INCOMPLETE
            return
        while self._pieces and self._pieces[-1].first >= piece.first:
            self._pieces.pop()
        if piece.first < self.length and self._pieces:
            self._pieces[-1] = self._pieces[-1].before(piece.first)
        self._pieces.append(piece)
        self.length = piece.end

    def look_again(self) -> None:
        """Read the tokens anew, once for every length."""
        if self.refresh and self._refreshed_length != self.length:
            self._refreshed_length = self.length
            self.refresh()

    def is_continued_by(self, later: "Choice") -> bool:
        """Whether a later choice goes on where this one, preempted, stopped."""
        has_more = self.start < later.start <= self.length
        is_same = later.exchange_id == self.exchange_id and not self.is_scheduled
        if not (has_more and is_same and self.prompt_ids == later.prompt_ids):
            return False
        return self.output_ids[: later.start] == later.output_ids[: later.start]

    def continue_from(self, earlier: "Choice") -> None:
        """Take over an earlier choice's positions and place."""
        kept = [piece for piece in earlier._pieces if piece.first < self.start]  # noqa: SLF001
        if kept[-1].end > self.start:
            kept[-1] = kept[-1].before(self.start)
        self._pieces[:0] = kept
        self.num_bytes += sum(piece.num_bytes for piece in kept)
        self.flags |= earlier.flags
        self.index, self.written_length = earlier.index, earlier.written_length
        self.start = 0

    def close(self) -> None:
        """Let go of what was recorded; a runner may still know it by its live list of tokens."""
        self.is_closed = True
        self._pieces.clear()
        self.prompt_ids = ()
        if self.refresh is not None:
            self.output_ids, self.refresh = [], None

    @property
    def has_ended(self) -> bool:
        """Whether the last recorded position was this completion's last."""
        length = self.length
        if not length or len(self.output_ids) < length:
            return False
        last = self.output_ids[length - 1]
        return last >= 0 and (length >= self.max_tokens or last in self.stop_ids)

    def completion_ids(self) -> list[int]:
        """Generated tokens that have a recorded row; placeholders of unsampled ones are not."""
        ids = self.output_ids[: self.length]
        return ids if -1 not in ids else ids[: ids.index(-1)]

    def to_row(self, config: TapConfig, day: str) -> LogitRow:
        """Gather the recorded positions into one row of the log; ``day`` is UTC, YYYY-MM-DD."""
        completion = self.completion_ids()
        pieces = [piece for piece in self._pieces if piece.first < len(completion)]
        if pieces[-1].end > len(completion):
            pieces[-1] = pieces[-1].before(len(completion))
        return LogitRow(
            exchange_id=self.exchange_id,
            day=day,
            choice=self.index,
            source="tap",
            model_revision=config.model_revision,
            tokenizer_hash=config.tokenizer_hash,
            prompt_ids=np.asarray(self.prompt_ids, np.int32),
            completion_ids=np.asarray(completion, np.int32),
            topk_size=np.concatenate([piece.size_n for piece in pieces]),
            topk_ids=np.concatenate([piece.ids_E for piece in pieces]),
            topk_logprobs=np.concatenate([piece.logprobs_E for piece in pieces]),
            tail_logprob=np.concatenate([piece.tail_logprob_n for piece in pieces]),
            tail_draws=np.concatenate([piece.draws_nD.ravel() for piece in pieces]),
            flags=int(self.flags),
            k_max=config.k_max,
            mass=config.mass,
        )
