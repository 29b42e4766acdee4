"""Rows of the log as hypothesis finds them."""

from hypothesis import strategies as st

from capture.rows import LogitRow
from tests.support.log_rows import logit_row


@st.composite
def logit_rows(draw: st.DrawFn, exchange_id: str = "x") -> LogitRow:
    """Any choice the tap could record, of up to six positions."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    return logit_row(
        exchange_id,
        choice=draw(st.integers(0, 3)),
        sizes=tuple(sizes),
        flags=draw(st.integers(0, 7)),
        day=draw(st.sampled_from(["2026-11-23", "2026-11-24"])),
        seed=draw(st.integers(0, 2**32 - 1)),
    )
