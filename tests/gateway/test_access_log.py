import json
from contextlib import closing
from pathlib import Path

import pytest

from capture.errors import ConfigError
from gateway.access_log import AccessLog
from gateway.config import GatewayConfig
from gateway.errors import RateLimitError
from gateway.observers import opened_observers
from tests.gateway.test_relay import chat, stand


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def opened(path: Path) -> "closing[AccessLog]":
    return closing(AccessLog(path))


async def test_each_request_is_a_line_without_its_text(tmp_path: Path) -> None:
    with opened(tmp_path / "access.jsonl") as log:
        async with stand(tmp_path) as s:
            s.serving.on_ended = log.write
            asked = chat("a secret word", stream=True)
            answer = await s.client.post("/v1/chat/completions", json=asked)
            await s.client.post("/v1/chat/completions", json=chat("fail"))

    completed, failed = lines(tmp_path / "access.jsonl")
    assert completed["exchange_id"] == answer.headers["x-retort-exchange-id"]
    assert (completed["route"], completed["deployment"]) == ("support", "teacher")
    assert (completed["status"], completed["http_status"], completed["error"]) == (
        *("completed", 200),
        None,
    )
    overhead, duration = completed["overhead_ms"], completed["duration_ms"]
    assert isinstance(overhead, float)
    assert isinstance(duration, float)
    assert overhead > 0  # what comes after the last byte, which ends the duration, counts too
    assert duration > 0
    assert (failed["status"], failed["http_status"]) == ("failed", 500)
    assert "secret" not in (tmp_path / "access.jsonl").read_text()
    assert "intent" not in (tmp_path / "access.jsonl").read_text()


def test_a_refused_request_is_a_line_too(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.refuse(RateLimitError("slower", 1.0))

    (line,) = lines(tmp_path / "log")
    assert (line["status"], line["http_status"]) == ("refused", 429)
    assert line["error"] == "rate_limit_exceeded"


def test_it_goes_on_in_a_new_file_when_the_old_one_was_moved(tmp_path: Path) -> None:
    with opened(tmp_path / "log") as log:
        log.refuse(RateLimitError("slower", 1.0))
        (tmp_path / "log").rename(tmp_path / "log.1")
        log.reopen()
        log.refuse(RateLimitError("slower", 1.0))

    assert len(lines(tmp_path / "log.1")) == len(lines(tmp_path / "log")) == 1


def test_a_new_file_that_cannot_be_opened_leaves_the_old_one_in_use(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    with opened(folder / "log") as log:
        folder.rename(tmp_path / "moved")
        log.reopen()
        log.refuse(RateLimitError("slower", 1.0))

    assert len(lines(tmp_path / "moved" / "log")) == 1


def test_a_full_disk_costs_no_answer() -> None:
    with opened(Path("/dev/full")) as log:
        log.refuse(RateLimitError("slower", 1.0))


async def test_a_file_that_cannot_be_written_is_a_mistake_of_the_configuration(
    tmp_path: Path,
) -> None:
    routes = {"a": {"url": "http://127.0.0.1:9"}}
    config = GatewayConfig.model_validate({"access_log": tmp_path, "routes": routes})

    with pytest.raises(ConfigError, match="access_log"):
        async with opened_observers(config):
            pass
