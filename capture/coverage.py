"""What of a segment is in the log already.

A row is known by its segment and the byte at which its frame begins there, so that neither a
second repair nor a copy that somebody brings back can add it again.
"""

from collections.abc import Iterable

from deltalake import DeltaTable

from capture.delta import ROWS, SPANS
from capture.frames import Span
from capture.history import entries
from capture.spool import SegmentName


class Coverage:
    """Bytes of segments whose rows a table has taken, as its history tells it."""

    def __init__(self, table: DeltaTable | None) -> None:
        self._history = entries(table) if table else []

    def spans(self, name: SegmentName) -> list[Span] | None:
        """From and to which byte it was taken; None if all of it was."""
        taken: list[Span] = []
        for entry in self._history:
            sequence = str(name.sequence)
            if sequence in entry.get(ROWS, {}).get(name.writer, {}):
                spans = entry.get(SPANS, {}).get(name.writer, {}).get(sequence)
                if spans is None:
                    return None
                taken += [(start, end) for start, end in spans]
        return taken


def is_within(start: int, spans: Iterable[Span]) -> bool:
    """Whether a byte lies in one of the spans."""
    return any(first <= start < end for first, end in spans)
