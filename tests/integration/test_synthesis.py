"""Answers asked through a real gateway: which of its log's rows a trainer takes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from capture.log import Log, query
from tests.support.gateway_process import configure, started
from tests.support.killable import wait_for
from trainer.commands import distill_app
from trainer.config import load


def test_accepted_answers_are_the_rows_that_the_filter_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["one", "two", "two", "refuse", "three"]
    chats = [{"messages": [{"role": "user", "content": word}]} for word in words]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, chats)))
    monkeypatch.chdir(tmp_path)
    config = configure(tmp_path)
    log = Log(tmp_path / "log")

    def committed() -> bool:
        with log.connect() as connection:
            return len(query(connection, "select 1 from examples")) == 4

    with started(config) as gateway:
        gateway.wait_ready()
        given = ["synthesize", str(prompts), "--route", "support", "--url", gateway.url]
        result = CliRunner().invoke(distill_app, [*given, "-o", "it's.jsonl"])
        assert result.exit_code == 0, result.output
        wait_for(committed)
    where = result.stdout.splitlines()[-1]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run = elsewhere / "run.toml"
    run.write_text(f'[trainer]\nlog = "../log"\nteacher = "t"\nout = "o"\n{where}\n')
    selected = log.snapshot(load(run).where)
    lines = [json.loads(line) for line in (tmp_path / "it's.jsonl").read_text().splitlines()]
    ids = log.read(selected, ["exchange_id"])["exchange_id"].to_pylist()

    assert sorted(ids) == sorted(line["exchange_id"] for line in lines if line["accepted"])
    assert len(ids) == 3
