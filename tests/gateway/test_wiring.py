import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.account import read_counts
from capture.config import CaptureConfig
from capture.rows import encode_logits
from capture.spool import closed_segments, read_segment
from capture.wire import CHAT, WireAnswer, WireRequest
from capture.writer import Spool
from gateway.wiring import Wire, stripped
from tests.gateway.test_relay import LIMITS, Stand, chat, stand
from tests.support.fake_engine import PROMPT_IDS

Json = dict[str, Any]


@dataclass
class Heard:
    """A gateway whose route is captured from the wire."""

    stand: Stand
    spool: Spool[Any]

    async def rows(self) -> list[Json]:
        await asyncio.to_thread(self.spool.close)
        segments = [read_segment(path) for path in closed_segments(self.stand.spool_dir)]
        batches = [
            batch
            for segment in segments
            if segment.name.table == "logits"
            for batch in segment.batches
        ]
        return [row for batch in batches for row in pa.Table.from_batches([batch]).to_pylist()]

    @property
    def dropped(self) -> Json:
        counts = read_counts(self.stand.spool_dir)
        return dict(next(c for (table, _), c in counts.items() if table == "logits").dropped)


@asynccontextmanager
async def heard(folder: Path) -> AsyncIterator[Heard]:
    async with stand(folder) as s:
        spool = Spool(folder / "spool", "logits", encode_logits, limits=LIMITS)
        route = s.serving.config.routes["support"].model_copy(update={"capture": "wire"})
        s.serving.config = s.serving.config.model_copy(update={"routes": {"support": route}})
        s.serving.wire = Wire(spool, CaptureConfig(mass=0.9), {"support": "tok"})
        yield Heard(s, spool)
        await asyncio.to_thread(spool.close)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_receives_what_it_would_have_received(tmp_path: Path, stream: bool) -> None:
    async with heard(tmp_path) as h, httpx.AsyncClient(base_url=h.stand.engine_url) as direct:
        through = await h.stand.client.post(CHAT, json=chat("hi", stream=stream))
        straight = await direct.post(CHAT, json=chat("hi", stream=stream))

    assert h.stand.engine.bodies[0]["top_logprobs"] == 20
    assert "logprobs" not in h.stand.engine.bodies[1]
    assert through.content == straight.content


@pytest.mark.parametrize("stream", [False, True])
async def test_the_answers_distributions_become_rows(tmp_path: Path, stream: bool) -> None:
    async with heard(tmp_path) as h:
        answer = await h.stand.client.post(CHAT, json=chat("hi", stream=stream))
        (row,) = await h.rows()
        (exchange,) = await h.stand.rows()

    assert row["exchange_id"] == answer.headers["x-retort-exchange-id"]
    assert (row["source"], row["flags"], row["tokenizer_hash"]) == ("wire", 0, "tok")
    assert (row["model_revision"], row["prompt_ids"]) == ("rev", PROMPT_IDS)
    assert row["completion_ids"] == [100, 101]
    assert row["topk_ids"] == [200, 100, 300, 201, 101, 301]
    assert exchange["capture"] == "wire"
    assert exchange["response_text"] == ['{"intent": "order"}']


async def test_completions_are_captured_too(tmp_path: Path) -> None:
    async with heard(tmp_path) as h:
        body = {"model": "support", "prompt": "hi"}
        answer = await h.stand.client.post("/v1/completions", json=body)
        (row,) = await h.rows()

    assert answer.json()["choices"][0]["logprobs"] is None
    assert row["completion_ids"] == [100, 101]


async def test_rows_are_written_before_the_client_has_the_whole_answer(tmp_path: Path) -> None:
    async with heard(tmp_path) as h:
        await h.stand.client.post(CHAT, json=chat("hi", stream=True))
        segments = [read_segment(path) for path in h.stand.spool_dir.glob("logits-*.open")]

    assert [segment.num_rows for segment in segments] == [1]


async def test_a_client_that_asks_for_logprobs_gets_exactly_those(tmp_path: Path) -> None:
    own = {"logprobs": True, "top_logprobs": 1}
    async with heard(tmp_path) as h, httpx.AsyncClient(base_url=h.stand.engine_url) as direct:
        through = await h.stand.client.post(CHAT, json=chat("hi", **own))
        straight = await direct.post(CHAT, json=chat("hi", **own))
        rows = await h.rows()

    assert through.content == straight.content
    assert h.stand.engine.bodies[0] == chat("hi", **own)
    assert rows == []


async def test_an_engine_that_refuses_our_fields_is_asked_without_them(tmp_path: Path) -> None:
    async with heard(tmp_path) as h:
        h.stand.engine.knows_ids = False
        answer = await h.stand.client.post(CHAT, json=chat("hi"))
        (exchange,) = await h.stand.rows()

    assert answer.status_code == 200
    assert h.stand.engine.bodies[1] == chat("hi")
    assert exchange["capture"] == "off"
    assert h.dropped == {"refused": 1}


@pytest.mark.parametrize(
    ("body", "headers"), [({"store": False}, {}), ({}, {"x-retort-capture": "off"})]
)
async def test_a_request_can_refuse_capture(
    tmp_path: Path, body: Json, headers: dict[str, str]
) -> None:
    async with heard(tmp_path) as h:
        await h.stand.client.post(CHAT, json=chat("hi", **body), headers=headers)
        rows = await h.rows()

    assert "logprobs" not in h.stand.engine.bodies[0]
    assert rows == []


async def test_an_engines_error_passes_through(tmp_path: Path) -> None:
    async with heard(tmp_path) as h:
        answer = await h.stand.client.post(CHAT, json=chat("fail"))

    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "out of memory"


async def test_a_broken_off_stream_is_flagged(tmp_path: Path) -> None:
    async with heard(tmp_path) as h:
        await h.stand.client.post(CHAT, json=chat("break", stream=True))
        rows = await h.rows()

    assert [row["flags"] for row in rows] == [4]


async def collected(body: bytes, cuts: list[int]) -> tuple[bytes, WireAnswer]:
    async def chunks() -> AsyncIterator[bytes]:
        edges = [0, *sorted(cuts), len(body)]
        for start, end in itertools.pairwise(edges):
            yield body[start:end]

    request = WireRequest.of(CHAT, {})
    assert request is not None
    answer = WireAnswer(request)
    parts = [part async for part in stripped(chunks(), answer, stream=True)]
    return b"".join(parts), answer


STREAM = (
    b"".join(
        b": a comment\n\ndata: "
        + orjson.dumps({"choices": [{"delta": delta, "logprobs": None}]})
        + end
        for delta, end in (
            ({"content": "\xe4"}, b"\n\n"),
            ({}, b"\n\n"),
            ({"content": "x"}, b"\r\n\r\n"),
        )
    )
    + b"data: [DONE]\n\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=6))
def test_any_split_of_a_stream_gives_the_same_bytes(cuts: list[int]) -> None:
    whole, _ = asyncio.run(collected(STREAM, []))
    passed, _ = asyncio.run(collected(STREAM, cuts))

    assert passed == whole
    assert passed.endswith(b"data: [DONE]\n\n")
    assert passed.count(b"data: {") == 2
