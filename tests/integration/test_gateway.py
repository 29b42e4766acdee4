"""``retort serve`` before a real vLLM: the official client, the log, kill -9, mistakes."""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI, AsyncStream

from capture.engine import free_port
from tests.integration.conftest import Tapped
from tests.support.retort import RETORT, address, serving

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionUserMessageParam

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


def configure(folder: Path, tapped: Tapped) -> Path:
    path = folder / "retort.toml"
    path.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"

[gateway.routes.tiny]
url = "{tapped.url}"

[capture]
log = "log"
spool = "{tapped.spool}"
segment_seconds = 0.2
commit_seconds = 0.2
""",
        encoding="utf-8",
    )
    return path


@asynccontextmanager
async def openai_client(config: Path) -> AsyncIterator[AsyncOpenAI]:
    url = address(config) + "/v1"
    async with AsyncOpenAI(base_url=url, api_key="unused", max_retries=0) as client:
        yield client


def log_command(config: Path, *words: str) -> Any:
    done = subprocess.run(
        [*RETORT, "log", *words, "-c", str(config), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def ask(client: AsyncOpenAI, text: str, *, stream: bool) -> str:
    message: ChatCompletionUserMessageParam = {"role": "user", "content": text}
    answer = await client.chat.completions.create(
        model="tiny", messages=[message], max_tokens=12, temperature=0, stream=stream
    )
    if isinstance(answer, AsyncStream):
        return "".join([c.choices[0].delta.content or "" async for c in answer if c.choices])
    return answer.choices[0].message.content or ""


def wait_until_committed(config: Path) -> Any:
    for _ in range(300):
        verified = log_command(config, "verify")
        if verified["in_flight"] == 0:
            return verified
        time.sleep(0.2)
    pytest.fail("rows never reached the log")


async def test_every_exchange_of_the_official_client_is_in_the_log(
    tapped: Tapped, tmp_path: Path
) -> None:
    config = configure(tmp_path, tapped)
    with serving(config):
        async with openai_client(config) as client:
            plain, streamed = await asyncio.gather(
                asyncio.gather(*(ask(client, f"ask {n}", stream=False) for n in range(6))),
                asyncio.gather(*(ask(client, f"ask {n}", stream=True) for n in range(6))),
            )
            completion = await client.completions.create(model="tiny", prompt="a", max_tokens=3)
        verified = await asyncio.to_thread(wait_until_committed, config)

    assert plain == streamed
    assert completion.choices[0].finish_reason == "length"
    assert verified["complete_fraction"] == 1.0
    count = log_command(config, "sql", "select count(*) as n from examples")
    assert count == [{"n": 13}]
    texts = log_command(config, "sql", "select distinct response_text as t from examples")
    assert {row["t"] for row in texts} >= set(plain)


async def test_a_killed_gateway_loses_no_row_whose_answer_was_received(
    tapped: Tapped, tmp_path: Path
) -> None:
    config = configure(tmp_path, tapped)
    with serving(config) as process:
        async with openai_client(config) as client:
            await asyncio.gather(*(ask(client, f"kill {n}", stream=True) for n in range(8)))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    words = [*RETORT, "log", "commit", "-c", str(config)]
    await asyncio.to_thread(subprocess.run, words, check=True)
    rows = log_command(
        config, "sql", "select count(*) as n from exchanges where status = 'completed'"
    )
    assert rows == [{"n": 8}]


def test_a_taken_port_is_named(tapped: Tapped, tmp_path: Path) -> None:
    config = configure(tmp_path, tapped)
    with serving(config):
        second = subprocess.run(
            [*RETORT, "serve", "-c", str(config)], capture_output=True, text=True, check=False
        )

    assert second.returncode == 1
    assert "cannot listen on 127.0.0.1" in second.stderr
    assert "Traceback" not in second.stderr


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("[gateway.routes.a]\nmodl = 'x'\n", 2, "did you mean 'model'?"),
        ("[gateway.routes.a]\nmodel = 'nowhere'\n", 2, "no config.json there"),
    ],
)
def test_a_bad_configuration_is_explained(
    tmp_path: Path, text: str, code: int, message: str
) -> None:
    config = tmp_path / "retort.toml"
    listen = f'listen = "127.0.0.1:{free_port()}"\nadmin_listen = "127.0.0.1:{free_port()}"\n'
    config.write_text(f"[gateway]\n{listen}\n{text}", encoding="utf-8")

    done = subprocess.run(
        [*RETORT, "serve", "-c", str(config)], capture_output=True, text=True, check=False
    )

    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
