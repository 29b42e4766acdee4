"""Segments, and what may happen to them on a disk."""

from collections.abc import Sequence
from pathlib import Path

from capture.account import Account
from capture.frames import walk
from capture.rows import encode_logits
from capture.schema import LOGITS
from capture.spool import SegmentWriter, closed_segments
from tests.support.log_rows import logit_row


def segment_of(spool: Path, *names: str, writer: str = "w") -> Path:
    """A closed segment of a dead writer that kept its account, with a frame per row."""
    (path,) = segments_of(spool, names, writer=writer)
    return path


def segments_of(spool: Path, *segments: Sequence[str], writer: str = "w") -> list[Path]:
    """Closed segments of a dead writer that kept its account, with a frame per row."""
    spool.mkdir(parents=True, exist_ok=True)
    spooled = SegmentWriter(spool, "logits", LOGITS, writer)
    account = Account(spool, "logits", writer)
    for names in segments:
        for name in names:
            spooled.append(encode_logits([logit_row(name)]))
            account.write(1)
        spooled.rotate()
    account.save()
    return [path for path in closed_segments(spool) if path.name.startswith(f"logits-{writer}-")]


def frame_starts(path: Path) -> list[int]:
    """Where each frame of a whole segment begins: header, schema, batches."""
    whole, damage = walk(memoryview(path.read_bytes()))
    assert damage is None
    return [frame.start for frame in whole]


def flip(path: Path, at_byte: int) -> None:
    """Alter one byte."""
    data = bytearray(path.read_bytes())
    data[at_byte] ^= 0xFF
    path.write_bytes(data)
