import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from capture.damage import Damage
from capture.frames import FRAME, frame, walk, whole_batches
from capture.rows import encode_logits
from capture.schema import LOGITS
from tests.support.log_rows import logit_row

ROWS = [logit_row(str(seed), seed=seed) for seed in range(5)]
PARTS = [b"".join(frame(b)) for b in (b"{}", LOGITS.serialize())]
PARTS += [b"".join(frame(encode_logits([row]).serialize())) for row in ROWS]
DATA = b"".join(PARTS)
STARTS = [sum(map(len, PARTS[:i])) for i in range(len(PARTS))]


def names(data: bytes) -> list[str]:
    return [b["exchange_id"][0].as_py() for _, b in whole_batches(data, LOGITS)]


def test_a_walk_over_a_whole_segment_finds_every_frame_and_no_damage() -> None:
    whole, damage = walk(memoryview(DATA))
    assert [one.start for one in whole] == STARTS
    assert damage is None


def test_a_walk_says_which_frame_is_damaged_where_and_how() -> None:
    data = bytearray(DATA)
    data[STARTS[3] + FRAME.size + 100] ^= 1
    assert walk(memoryview(data))[1] == Damage("checksum", 3, STARTS[3])
    assert walk(memoryview(DATA[:-1]))[1] == Damage("cut short", 6, STARTS[6])
    assert walk(memoryview(DATA + bytes(64)))[1] == Damage("cut short", 7, len(DATA))


@given(data=st.data())
@settings(max_examples=100)
def test_every_batch_is_found_but_the_one_that_was_altered(data: st.DataObject) -> None:
    altered = bytearray(DATA)
    at = data.draw(st.integers(0, len(DATA) - 1))
    altered[at] ^= data.draw(st.integers(1, 255))

    hit = sum(start <= at for start in STARTS) - 1
    assert names(bytes(altered)) == [str(i) for i in range(5) if i != hit - 2]


@given(hole=st.binary(max_size=64), number=st.integers(2, 6))
@settings(max_examples=50)
def test_batches_behind_a_hole_of_any_size_are_found(hole: bytes, number: int) -> None:
    data = DATA[: STARTS[number]] + hole + DATA[STARTS[number] + 50 :]
    assert names(data) == [str(i) for i in range(5) if i != number - 2]


def test_what_is_no_frame_is_not_taken_for_one() -> None:
    assert names(b"\xff" * 4096) == []
    assert names(bytes(4096)) == []
    assert names(b"") == []
    # The right length and mark, but no checksum.
    assert names(struct.pack("<II", 64, 0) + b"\xff" * 64) == []
    # Everything right, but it is no batch of these columns.
    assert names(b"".join(frame(LOGITS.serialize()))) == []
