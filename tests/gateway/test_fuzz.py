"""What nobody would send: no request may break the gateway, and nothing that an engine says."""

import asyncio
import gc
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from capture.wire import WireAnswer, WireRequest
from gateway.endpoints import ENDPOINTS
from gateway.keys import ApiKey
from gateway.reading import read_answer
from gateway.wiring import stripped
from tests.gateway.test_closed import gate_of
from tests.gateway.test_keys import made
from tests.gateway.test_relay import Stand, stand
from tests.support.serving import served

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [
        *("messages", "prompt", "input", "n", "best_of", "max_tokens", "stop", "stream", "user"),
        *("tools", "vllm_xargs", "cache_salt", "store", "logprobs", "top_logprobs", "metadata"),
        *("response_format", "choices", "usage", "error", "stream_options", "tool_choice"),
    ]
)
MESSAGES = st.lists(st.fixed_dictionaries({"role": JSON, "content": JSON}), max_size=2)
BODIES = st.builds(
    lambda fields, messages: {"model": "support", "messages": messages, **fields},
    st.dictionaries(FIELDS, JSON, max_size=4),
    MESSAGES | JSON,
)
ANSWERS = st.dictionaries(
    st.sampled_from(
        ["choices", "usage", "error", "type", "response", "output", "message", "delta"]
    ),
    JSON | st.lists(st.dictionaries(st.sampled_from(["index", "delta", "message", "text"]), JSON)),
)
HOSTILE = [
    *(b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": 1}', b"[" * 100_000),
    b'{"model": "support", "messages": ' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"model": "support", "messages": [{"role": "user", "content": 5}], "n": 1e999}',
    b'{"model": "support", "n": -1, "max_tokens": -9, "best_of": "x", "prompt": {}}',
    b'{"model": "support", "messages": [{"content": [{"image_url": {"url": 5}}]}]}',
    b'{"model": "support", "vllm_xargs": [], "cache_salt": {}, "stop": {"a": 1}}',
    b'{"model": "support\\ud800", "messages": []}',
]
THOROUGH = settings(max_examples=150, deadline=None)


async def tolerant(scope: Scope, receive: Receive, send: Send) -> None:
    """An engine that takes anything."""
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body", False):
        pass
    body = b'{"object": "x", "choices": [{"index": 0, "message": {"content": "ok"}}]}'
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def standing(folder: Path, key: ApiKey) -> AsyncIterator[Stand]:
    """A gateway that asks for a key, before an engine that takes anything."""
    async with stand(folder, gate=gate_of(key)) as s, served(tolerant) as url:
        s.serving.table.routes["support"].incumbent.pool.members[0].url = url
        yield s


@dataclass
class Reached:
    """A gateway that runs in a thread of its own, so that synchronous tests can ask it."""

    stand: Stand
    loop: asyncio.AbstractEventLoop
    key: str

    def post(self, path: str, body: bytes) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json"}
        asking = self.stand.client.post(path, content=body, headers=headers)
        return asyncio.run_coroutine_threadsafe(asking, self.loop).result(20)


@pytest.fixture(scope="module")
def reached(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reached]:
    key, text = made()
    started: Future[Reached] = Future()

    async def run() -> None:
        ended = asyncio.Event()
        async with standing(tmp_path_factory.mktemp("fuzz"), key) as s:
            loop = asyncio.get_running_loop()
            started.set_result(Reached(s, loop, text))
            endings.append(lambda: loop.call_soon_threadsafe(ended.set))
            await ended.wait()

    endings: list[Callable[[], object]] = []
    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    yield started.result(30)
    endings[0]()
    thread.join(30)


@THOROUGH
@given(path=st.sampled_from(sorted(ENDPOINTS)), body=BODIES)
def test_no_body_breaks_the_gateway(reached: Reached, path: str, body: dict[str, object]) -> None:
    answer = reached.post(path, orjson.dumps(body))

    assert answer.status_code in {200, 400, 404}
    assert answer.is_success or answer.json()["error"]["message"]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_are_refused_or_passed_on(reached: Reached, body: bytes) -> None:
    answer = reached.post("/v1/chat/completions", body)

    assert answer.status_code in {200, 400, 404}


def test_hostile_bodies_leave_nothing_behind(reached: Reached) -> None:
    counts = []
    for _ in range(4):
        for body in HOSTILE * 10:
            reached.post("/v1/chat/completions", body)
        gc.collect()
        counts.append(len(gc.get_objects()))

    assert counts[-1] - counts[-2] < 200, counts


@THOROUGH
@given(chunks=st.lists(st.binary(max_size=60)), is_stream=st.booleans())
def test_any_bytes_of_an_engine_can_be_read(chunks: list[bytes], is_stream: bool) -> None:
    answer = read_answer(chunks, stream=is_stream)

    assert isinstance(answer.texts, list)


@THOROUGH
@given(events=st.lists(ANSWERS, max_size=4), is_stream=st.booleans())
def test_any_documents_of_an_engine_can_be_read(
    events: list[dict[str, object]], is_stream: bool
) -> None:
    pieces = [b"data: " + orjson.dumps(event) + b"\n\n" for event in events]
    answer = read_answer(pieces if is_stream else [orjson.dumps(events[:1])], stream=is_stream)

    assert isinstance(answer.texts, list)
    assert isinstance(answer.finish_reasons, list)


@THOROUGH
@given(events=st.lists(ANSWERS | st.binary(max_size=40), max_size=4), is_stream=st.booleans())
def test_whatever_an_engine_says_reaches_the_client_without_what_we_asked_for(
    events: list[dict[str, object] | bytes], is_stream: bool
) -> None:
    async def passed() -> list[bytes]:
        request = WireRequest.of("/v1/chat/completions", {"model": "a", "messages": []})
        assert request is not None
        return [piece async for piece in stripped(sent(), WireAnswer(request), stream=is_stream)]

    async def sent() -> AsyncIterator[bytes]:
        for event in events:
            said = event if isinstance(event, bytes) else orjson.dumps(event)
            yield b"data: " + said + b"\n\n" if is_stream else said

    assert isinstance(asyncio.run(passed()), list)


def test_the_gateway_keeps_to_its_own_openapi(reached: Reached) -> None:
    """Schemathesis makes requests from the document, valid ones and others."""
    url = str(reached.stand.client.base_url)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"]
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    done = subprocess.run(
        [
            *(*command, "--header", f"Authorization: Bearer {reached.key}"),
            *("--checks", f"{checks},response_schema_conformance"),
            *("--max-examples", "20", "--seed", "1", "--request-timeout", "20"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
