"""llama.cpp's OpenAI server behind a gateway: answers pass, and what it thought is captured."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from transformers import AutoTokenizer

from capture.config import load as load_capture
from capture.engine import free_port
from capture.log import Log, query
from capture.revision import tokenizer_hash
from quant.llamacpp.making import FILE
from tests.quant.llamacpp.conftest import Made
from tests.support.killable import Killable, wait_for
from tests.support.retort import address, serving

pytestmark = [pytest.mark.gguf, pytest.mark.timeout(300)]
MESSAGES = [{"role": "user", "content": "hello there"}]
PLAIN: dict[str, Any] = {"temperature": 0, "extra_body": {"repeat_penalty": 1.0}}
ASK: dict[str, Any] = {"model": "edge", "messages": MESSAGES, "max_tokens": 6, **PLAIN}


@dataclass(frozen=True)
class Edge:
    """A gateway before llama.cpp's server."""

    made: Made
    config: Path
    engine_url: str

    def client(self, url: str | None = None) -> openai.OpenAI:
        base = url or address(self.config)
        return openai.OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0)

    def rows(self, count: int, *, exchange_id: str) -> list[dict[str, Any]]:
        """Captured choices of an exchange, once they are in the log."""
        log = Log(load_capture(self.config).log)
        found: list[dict[str, Any]] = []

        def is_there() -> bool:
            with log.connect() as connection:
                sql = "select * from logits where exchange_id = ? order by choice"
                found[:] = query(connection, sql, exchange_id).to_pylist()
            return len(found) == count

        wait_for(is_there)
        return found


@pytest.fixture(scope="module")
def edge(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    home = tmp_path_factory.mktemp("edge")
    bundle, port = made.bundles["gguf-q8_0"], free_port()
    command = [sys.executable, "-m", "llama_cpp.server", "--model", str(bundle / FILE)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "256", "--n_threads", "1"]
    command += ["--interrupt_requests", "false"]
    url = f"http://127.0.0.1:{port}"
    server = Killable(command, f"{url}/v1/models", home / "server.log")
    config = home / "retort.toml"
    config.write_text(
        f"""\
[gateway]
listen = "127.0.0.1:{free_port()}"
admin_listen = "127.0.0.1:{free_port()}"
[gateway.routes.edge]
url = "{url}"
capture = "wire"
tokenizer = "{bundle}"
[gateway.routes.edge.pool]
max_outstanding = 1
[capture]
segment_seconds = 0.1
commit_seconds = 0.1
""",
        encoding="utf-8",
    )
    try:
        with serving(config):
            yield Edge(made, config, url)
    finally:
        server.kill()


def test_an_openai_client_gets_what_the_server_says(edge: Edge) -> None:
    through = edge.client().chat.completions.create(**ASK)
    straight = edge.client(edge.engine_url).chat.completions.create(**ASK)

    assert through.choices[0].message.content == straight.choices[0].message.content
    assert through.choices[0].logprobs is None
    assert through.usage == straight.usage


def test_a_stream_passes(edge: Edge) -> None:
    whole = edge.client(edge.engine_url).chat.completions.create(**ASK)
    events = edge.client().chat.completions.create(**ASK, stream=True)

    pieces = [event.choices[0].delta.content or "" for event in events]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 2


@pytest.mark.parametrize("stream", [False, True])
def test_what_it_thought_is_in_the_log(edge: Edge, *, stream: bool) -> None:
    tokenizer = AutoTokenizer.from_pretrained(edge.made.model)
    told = edge.client(edge.engine_url).chat.completions.create(
        **ASK, logprobs=True, top_logprobs=20
    )

    answer = edge.client().chat.completions.with_raw_response.create(**ASK, stream=stream)
    answer.http_response.read()
    (row,) = edge.rows(1, exchange_id=answer.headers["x-retort-exchange-id"])

    assert (row["source"], row["flags"], row["choice"]) == ("wire", 0, 0)
    assert row["tokenizer_hash"] == tokenizer_hash(edge.made.model)
    prompt = tokenizer.apply_chat_template(MESSAGES, add_generation_prompt=True)["input_ids"]
    assert row["prompt_ids"] == prompt
    assert tokenizer.decode(row["completion_ids"]) == told.choices[0].message.content
    assert told.choices[0].logprobs is not None
    expected = told.choices[0].logprobs.content or []
    first = np.cumsum([0, *row["topk_size"][:-1]])
    assert len(expected) == len(row["topk_size"]) == 6
    for place, position in zip(first, expected, strict=True):
        best = max(position.top_logprobs, key=lambda entry: entry.logprob)
        assert tokenizer.decode([row["topk_ids"][place]]) == best.token
        assert row["topk_logprobs"][place] == pytest.approx(best.logprob, abs=1e-3)


def test_completions_are_captured_too(edge: Edge) -> None:
    tokenizer = AutoTokenizer.from_pretrained(edge.made.model)
    ask = {"model": "edge", "prompt": "abc <|user|>", "max_tokens": 3, **PLAIN}

    answer = edge.client().completions.with_raw_response.create(**ask)
    (row,) = edge.rows(1, exchange_id=answer.headers["x-retort-exchange-id"])

    assert row["prompt_ids"] == tokenizer("abc <|user|>")["input_ids"]
    assert tokenizer.decode(row["completion_ids"]) == answer.parse().choices[0].text


def test_many_clients_at_once_are_all_answered(edge: Edge) -> None:
    def ask(number: int) -> object:
        messages = [{"role": "user", "content": f"say {number}"}]
        told = edge.client().chat.completions.create(**{**ASK, "messages": messages})
        return told.choices[0].finish_reason

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(ask, range(6))) == {"length"}
