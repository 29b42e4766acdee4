"""What became of the rows that began: ``started = committed + dropped + in_flight``."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from capture.account import Counts


@dataclass(slots=True)
class Balance:
    """What became of the rows that began; the parts add up to ``started``."""

    started: int = 0
    committed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    in_flight: int = 0

    def add(self, other: "Balance") -> None:
        """Add another's counts to this one's."""
        self.started += other.started
        self.committed += other.committed
        self.dropped += other.dropped
        self.in_flight += other.in_flight

    def document(self) -> dict[str, object]:
        """The parts as JSON."""
        return {
            "started": self.started,
            "committed": self.committed,
            "dropped": dict(self.dropped),
            "in_flight": self.in_flight,
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of one writer.

    Attributes:
        counts: Its own counts, as last saved.
        committed: Rows of it in the table's history.
        waiting: Rows of it in segments not yet committed.
        is_alive: Whether it still runs.
        is_damaged: Whether a segment of it was set aside.
        kept_out: Rows of it that a commit kept out of the table, by reason.
    """

    counts: Counts
    committed: int
    waiting: int
    is_alive: bool
    is_damaged: bool
    kept_out: Mapping[str, int] = field(default_factory=dict)

    @property
    def found(self) -> int:
        """Rows it wrote of which we know what became of them."""
        return self.committed + self.waiting + sum(self.kept_out.values())

    @property
    def lost(self) -> int:
        """Rows it wrote that are nowhere now."""
        return max(0, self.counts.written - self.found)

    def balance(self) -> Balance:
        """What became of its rows; a dead writer's unfinished ones were killed with it."""
        dropped = Counter(self.counts.dropped)
        # A writer that was killed may have written more than it had time to count.
        written = max(self.counts.written, self.found)
        started = max(self.counts.started, written + dropped.total())
        unfinished = started - written - dropped.total()
        dropped.update(self.kept_out)
        if self.is_damaged and self.lost:
            dropped["damaged"] += self.lost
        if self.is_alive:
            return Balance(started, self.committed, dropped, self.waiting + unfinished)
        if unfinished:
            dropped["killed"] += unfinished
        return Balance(started, self.committed, dropped, self.waiting)
