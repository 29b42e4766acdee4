"""``retort distill synthesize`` against a scripted gateway."""

import json
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from capture.errors import ConfigError
from tests.support.json_server import Asked, Reply, json_server, models, refusal
from trainer import endpoint
from trainer.commands import distill_app
from trainer.errors import EndpointError

ROUTES = ["support", "examiner"]


@dataclass
class FakeGateway:
    """Answers a prompt "w: words" with "words"; its first letter may steer it, as ``_said`` has it.

    Judges that an answer is right if there is no "wrong" in it.
    """

    key: str | None = None
    failing: Counter[str] = field(default_factory=Counter)
    asked: list[Asked] = field(default_factory=list)
    most_at_a_time: int = 0
    meeting: threading.Barrier | None = None
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def respond(self, asked: Asked) -> Reply:
        if self.key is not None and asked.headers["authorization"] != f"Bearer {self.key}":
            return refusal(401)
        if asked.body is None:
            return models(ROUTES)
        with self._lock:
            self.asked.append(asked)
            self._now += 1
            self.most_at_a_time = max(self.most_at_a_time, self._now)
        try:
            if self.meeting is not None:
                self.meeting.wait(30)
            return self._said(asked.body["messages"][-1]["content"])
        finally:
            with self._lock:
                self._now -= 1

    def _said(self, words: str) -> Reply:
        if words.startswith("[user]"):
            if self.failing["judge"]:
                self.failing["judge"] -= 1
                return refusal(500)
            answer = words.rpartition("[assistant]\n")[2]
            said = "<think>no?</think>\n**Yes**" if "wrong" not in answer else "No, it is not."
            return self._completion("maybe" if "unclear" in answer else said)
        with self._lock:
            if self.failing[words]:
                self.failing[words] -= 1
                return refusal(500)
        kind, _, rest = words.partition(": ")
        if kind == "refused":
            return refusal(400)
        return self._completion(rest, "length" if kind == "long" else "stop")

    def _completion(self, text: str, reason: str = "stop") -> Reply:
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": reason}
        document = {"id": "c", "object": "chat.completion", "created": 0, "model": "m"}
        headers = {"x-retort-exchange-id": uuid.uuid4().hex}
        return Reply({**document, "choices": [choice]}, headers=headers)


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> FakeGateway:
    monkeypatch.setattr(endpoint, "MAX_RETRIES", 0)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return FakeGateway()


@pytest.fixture
def url(gateway: FakeGateway) -> Iterator[str]:
    with json_server(gateway.respond) as address:
        yield address


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_prompts(home: Path, *words: str) -> Path:
    turns = [[{"role": "user", "content": each}] for each in words]
    lines = [json.dumps({"messages": messages}) for messages in turns]
    (home / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    return home / "prompts.jsonl"


def synthesize(prompts: Path, url: str, *words: str, route: str = "support") -> Result:
    given = ["synthesize", str(prompts), "--route", route, "--url", url, *words]
    return CliRunner().invoke(distill_app, given, catch_exceptions=False)


def lines_of(home: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (home / "accepted.jsonl").read_text().splitlines()]


def reasons(home: Path) -> list[tuple[bool, str | None]]:
    return sorted((line["accepted"], line["reason"] or "") for line in lines_of(home))


def test_every_prompt_has_a_line_that_names_its_exchange_and_holds_no_text(
    home: Path, url: str
) -> None:
    words = [f"a: secret {number}" for number in range(30)]
    result = synthesize(write_prompts(home, *words), url, "--json")
    lines = lines_of(home)

    assert result.exit_code == 0
    assert json.loads(result.stdout)["counts"] == {"accepted": 30}
    assert len({line["exchange_id"] for line in lines}) == 30
    assert all(line["accepted"] for line in lines)
    assert "secret" not in (home / "accepted.jsonl").read_text()


def test_answers_that_are_empty_cut_or_there_already_are_left_out(home: Path, url: str) -> None:
    prompts = write_prompts(home, "a: one", "a: one", "a: two", "b:  ", "long: three", "refused: x")
    result = synthesize(prompts, url)

    assert reasons(home) == [
        (False, "a duplicate"),
        (False, "empty"),
        (False, "ended by length"),
        (False, "the gateway refused the prompt (400)"),
        (True, ""),
        (True, ""),
    ]
    assert "2 accepted" in result.stdout
    assert 'where = "exchange_id in (select exchange_id from read_json' in result.stdout


def test_so_many_requests_are_under_way_at_a_time_and_not_more(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    gateway.meeting = threading.Barrier(3)  # answers nobody before three are there
    words = [f"a: {number}" for number in range(39)]
    synthesize(write_prompts(home, *words), url, "--concurrency", "3", "--max-tokens", "7")

    assert gateway.most_at_a_time == 3
    assert all(asked.body and asked.body["max_tokens"] == 7 for asked in gateway.asked)


def test_a_model_judges_and_its_own_answers_are_not_captured(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    prompts = write_prompts(home, "a: fine", "a: wrong", "a: unclear")
    synthesize(prompts, url, "--judge", "self", "--judge-model", "examiner")
    judged = [asked for asked in gateway.asked if asked.body and asked.body["model"] == "examiner"]

    assert reasons(home) == [
        (False, "the judge said neither yes nor no"),
        (False, "the judge said no"),
        (True, ""),
    ]
    assert [asked.headers["x-retort-capture"] for asked in judged] == ["off"] * 3
    assert len(gateway.asked) == 6
    assert all(
        "x-retort-capture" not in asked.headers for asked in gateway.asked if asked not in judged
    )


def test_a_function_judges_by_yes_and_no_or_by_a_score(home: Path, url: str) -> None:
    (home / "judge.py").write_text(
        "def is_short(messages, answer):\n"
        "    assert messages[-1]['role'] == 'user'\n"
        "    return len(answer) < 4\n"
        "def share(messages, answer):\n"
        "    return len(answer) / 10\n"
    )
    prompts = write_prompts(home, "a: one", "a: three")
    synthesize(prompts, url, "--judge", "judge.py:is_short")
    assert reasons(home) == [(False, "the judge said no"), (True, "")]
    (home / "accepted.jsonl").unlink()

    synthesize(prompts, url, "--judge", "judge.py:share")
    found = {line["score"]: line["accepted"] for line in lines_of(home)}
    assert found == {0.3: False, 0.5: True}


def test_what_has_a_line_is_not_asked_again_and_a_torn_line_is_cut(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    synthesize(write_prompts(home, "a: one", "a: two", "long: x"), url)
    path = home / "accepted.jsonl"
    before = path.read_bytes()
    path.write_bytes(before + b'{"prompt": "torn')
    gateway.asked.clear()

    result = synthesize(write_prompts(home, "a: one", "b: one", "a: one", "a: two", "long: x"), url)

    assert result.exit_code == 0
    assert [asked.body and asked.body["messages"][0]["content"] for asked in gateway.asked] in (
        ["b: one", "a: one"],
        ["a: one", "b: one"],
    )
    assert path.read_bytes().startswith(before)
    assert Counter(line["reason"] for line in lines_of(home)) == {
        None: 3,
        "ended by length": 1,
        "a duplicate": 1,
    }


def test_a_prompt_that_fails_is_left_for_the_next_call(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    gateway.failing["a: two"] = 1
    prompts = write_prompts(home, "a: one", "a: two", "a: three")

    with pytest.raises(EndpointError, match="1 prompts were not answered; run again"):
        synthesize(prompts, url)
    assert len(lines_of(home)) == 2
    assert synthesize(prompts, url).exit_code == 0
    assert len(lines_of(home)) == 3


def test_an_answer_whose_judge_failed_is_no_duplicate_when_it_comes_again(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    gateway.failing["judge"] = 1
    prompts = write_prompts(home, "a: one", "a: one")

    with pytest.raises(EndpointError, match="1 prompts were not answered"):
        synthesize(prompts, url, "--judge", "self", "--concurrency", "1")
    assert reasons(home) == [(True, "")]


def test_a_function_that_raises_is_shown_as_it_is(home: Path, url: str) -> None:
    (home / "judge.py").write_text("def judge(messages, answer):\n    return 1 / 0\n")

    with pytest.raises(ZeroDivisionError):
        synthesize(write_prompts(home, "a: one"), url, "--judge", "judge.py:judge")


def test_a_gateway_that_always_fails_ends_the_call_and_what_was_done_is_kept(
    home: Path, url: str, gateway: FakeGateway
) -> None:
    words = ["a: one", *(f"a: {number}" for number in range(30))]
    gateway.failing.update(words[1:])

    with pytest.raises(EndpointError, match="answers 500: no"):
        synthesize(write_prompts(home, *words), url, "--concurrency", "1")
    assert [line["accepted"] for line in lines_of(home)] == [True]
    assert len(gateway.asked) == 9


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"messages": [{"role": "user"}]}', r":2: expected .*messages"),
        ("{", r":2: expected"),
        ('{"messages": [{"role": "user", "content": 3}]}', r":2: expected"),
        ('{"messages": [{"role": "assistant", "content": "alone"}]}', r":2: expected"),
    ],
)
def test_a_line_that_is_no_chat_is_named(home: Path, line: str, words: str) -> None:
    path = write_prompts(home, "a: one")
    path.write_text(path.read_text() + line)

    with pytest.raises(ConfigError, match=words):
        synthesize(path, "http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--judge", "nobody"), "expected none, self, or FILE.py:function"),
        (("--judge", "judge.py:missing"), "judge.py has no function 'missing'"),
        (("--judge", "judge.py:text"), "returned str, expected True, False or a score"),
        (("--judge", "self", "--judge-model", "none"), "has no route 'none', only support, exam"),
        (("-o", "prompts.jsonl"), ":1: not a line of .*another file with -o"),
    ],
)
def test_a_mistake_is_named(home: Path, url: str, words: tuple[str, ...], message: str) -> None:
    (home / "judge.py").write_text("def text(messages, answer):\n    return 'yes'\n")
    with pytest.raises(ConfigError, match=message):
        synthesize(write_prompts(home, "a: one"), url, *words)


def test_a_route_a_key_and_an_address_that_are_wrong_are_named(
    home: Path, url: str, gateway: FakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_prompts(home, "a: one")
    with pytest.raises(ConfigError, match="has no route 'sales', only support, examiner"):
        synthesize(prompts, url, route="sales")
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9: no answer"):
        synthesize(prompts, "http://127.0.0.1:9")
    gateway.key = "right"
    with pytest.raises(ConfigError, match=r"refuses the key .401.*OPENAI_API_KEY"):
        synthesize(prompts, url)
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert synthesize(prompts, url).exit_code == 0


def test_a_server_that_is_no_gateway_is_told(home: Path) -> None:
    def plain(asked: Asked) -> Reply:
        if asked.body is None:
            return models(ROUTES)
        return Reply(FakeGateway()._said("a: one").document)

    with (
        json_server(plain) as address,
        pytest.raises(ConfigError, match=r"does not name the exchange.*expected a Retort gateway"),
    ):
        synthesize(write_prompts(home, "a: one"), address)
