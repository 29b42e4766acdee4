"""What a client gets through the gateway is what the engine says: compared, and used for real."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from tests.integration.conftest import Tapped
from tests.integration.shapes import shapes
from tests.integration.test_gateway import configure
from tests.support.retort import address, serving

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]
ATTEMPTS = 20  # a busy engine may put two tokens into one event, once more or less
OF_ONE_REQUEST = [
    (re.compile(rb'"((?:request_|item_|response_)?id)":\s*"[^"]*"'), rb'"\1":""'),
    (re.compile(rb'"(created|created_at|completed_at)":\s*[0-9.]+'), rb'"\1":0'),
    (re.compile(rb"(chatcmpl|cmpl|resp|msg|embd)[-_][0-9a-f-]{8,}"), rb"\1"),
]
NODE_CLIENT = """
import OpenAI from 'openai';
const client = new OpenAI({baseURL: process.argv[2] + '/v1', apiKey: 'unused'});
const body = {model: 'tiny', max_tokens: 6, temperature: 0,
              messages: [{role: 'user', content: 'hello'}]};
const whole = await client.chat.completions.create(body);
let text = '';
for await (const event of await client.chat.completions.create({...body, stream: true}))
  text += event.choices[0]?.delta?.content ?? '';
console.log(JSON.stringify({whole: whole.choices[0].message.content, streamed: text}));
"""


@pytest.fixture(scope="module")
def gateway(tapped: Tapped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    config = configure(tmp_path_factory.mktemp("transparent"), tapped)
    with serving(config):
        yield address(config)


Compared = tuple[int, dict[str, str], list[bytes]]


def compared(answer: httpx.Response) -> Compared:
    """Status, headers and frames, without what differs between any two requests.

    Choices take turns as the engine likes: only the order within each of them is its own.
    """
    body = answer.content
    for pattern, replacement in OF_ONE_REQUEST:
        body = pattern.sub(replacement, body)
    headers = {
        name: value
        for name, value in answer.headers.items()
        if not name.startswith("x-retort-") and name not in {"date", "content-length"}
    }
    return answer.status_code, headers, sorted(body.split(b"\n\n"), key=choice_of)


def choice_of(frame: bytes) -> int:
    """The choice that an event belongs to; what belongs to none comes last."""
    found = re.search(rb'"choices":\[\{"index":(\d+)', frame)
    return int(found[1]) if found else 1000


def difference(one: Compared, other: Compared) -> list[object]:
    """Where two answers differ."""
    pairs = [*zip(one[:2], other[:2], strict=True), *itertools.zip_longest(one[2], other[2])]
    return [pair for pair in pairs if pair[0] != pair[1]]


async def test_bodies_frames_and_headers_are_the_engines(tapped: Tapped, gateway: str) -> None:
    asked = list(shapes("tiny"))
    assert len(asked) >= 150
    different: list[object] = []
    statuses = set()
    async with (
        httpx.AsyncClient(base_url=tapped.url, timeout=60) as direct,
        httpx.AsyncClient(base_url=gateway, timeout=60) as through,
    ):
        for path, body in asked:
            straight, relayed = [], []
            for _ in range(ATTEMPTS):
                straight.append(compared(await direct.post(path, json=body)))
                relayed.append(compared(await through.post(path, json=body)))
                if straight[-1] in relayed or relayed[-1] in straight:
                    break
            else:
                different.append((path, body, *difference(straight[-1], relayed[-1])))
            statuses.add(straight[-1][0])

    assert different == []
    assert {200, 400} <= statuses


async def test_openais_client_for_python(gateway: str) -> None:
    async with AsyncOpenAI(base_url=f"{gateway}/v1", api_key="unused") as client:
        response = await client.responses.create(model="tiny", input="hello", max_output_tokens=6)
        events = [
            event.type
            async for event in await client.responses.create(
                model="tiny", input="hello", max_output_tokens=6, stream=True
            )
        ]
        models = await client.models.list()
    assert response.output
    assert events[-1] in {"response.completed", "response.incomplete"}
    assert [model.id for model in models.data] == ["tiny"]


async def test_anthropics_client(gateway: str) -> None:
    from anthropic import AsyncAnthropic  # noqa: PLC0415 - seconds, in every worker that collects

    async with AsyncAnthropic(base_url=gateway, api_key="unused") as client:
        messages = [{"role": "user", "content": "hello"}]
        whole = await client.messages.create(model="tiny", max_tokens=6, messages=messages)  # type: ignore[arg-type]
        async with client.messages.stream(model="tiny", max_tokens=6, messages=messages) as stream:  # type: ignore[arg-type]
            streamed = await stream.get_final_message()
        count = await client.messages.count_tokens(model="tiny", messages=messages)  # type: ignore[arg-type]
    assert whole.usage.output_tokens > 0
    assert streamed.usage.output_tokens > 0
    assert count.input_tokens > 0


async def test_langchain(gateway: str) -> None:
    from langchain_openai import ChatOpenAI  # noqa: PLC0415 - likewise

    model = ChatOpenAI(
        base_url=f"{gateway}/v1",
        api_key="unused",  # type: ignore[arg-type]
        model="tiny",
        temperature=0,
        max_completion_tokens=6,
    )
    whole = await model.ainvoke("hello")
    pieces = [piece.content async for piece in model.astream("hello")]
    assert "".join(map(str, pieces)) == whole.content


def test_openais_client_for_node(gateway: str, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js and npm are not installed")
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "openai@6"]
    installed = subprocess.run(install, check=False, cwd=tmp_path, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"npm cannot install OpenAI's client here: {installed.stderr[-200:]}")
    (tmp_path / "client.mjs").write_text(NODE_CLIENT, encoding="utf-8")
    done = subprocess.run(
        [node, "client.mjs", gateway], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["streamed"] == said["whole"]


@pytest.mark.long
def test_vllms_own_load(tapped: Tapped, gateway: str, tmp_path: Path) -> None:
    out = tmp_path / "load.json"
    load = [sys.executable, "-m", "tests.bench.gateways.vllm_load"]
    words = ["--served", "tiny", "--requests", "32", "--streams", "8", "--rounds", "1"]
    subprocess.run(
        [*load, str(tapped.model), str(out), gateway, *words],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    ((rate,),) = json.loads(out.read_text()).values()
    assert rate > 0
