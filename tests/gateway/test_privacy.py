"""What an exchange leaves behind under each policy, and with redaction."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.redaction import RedactConfig, Redactor
from gateway.answer import Answer, Choice
from gateway.privacy import STRICTEST_FIRST, Keeping, Policy, policy_of
from tests.gateway.test_relay import chat, stand

REDACTOR = Redactor(
    RedactConfig.model_validate({"enabled": ["email", "card"], "patterns": {"order": r"ORD-\d+"}})
)
CHAT = "/v1/chat/completions"


def on_disk(spool: Path, text: str) -> list[str]:
    """Files of a spool that hold a text."""
    return [path.name for path in spool.iterdir() if text.encode() in path.read_bytes()]


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"store": False}, {}),
        ({}, {"x-retort-capture": "off"}),
        ({}, {"x-retort-capture": "OFF"}),
        ({}, {"x-retort-capture": "no, thanks"}),
    ],
)
async def test_a_request_that_refuses_capture_leaves_no_text(
    tmp_path: Path, body: dict[str, object], headers: dict[str, str]
) -> None:
    async with stand(tmp_path) as s:
        s.engine.answer = "the answer's canary"
        request = chat("the request's canary", stop=["the stop's canary"], **body)
        await s.client.post(CHAT, json=request, headers=headers)
        (row,) = await s.rows()

    assert "vllm_xargs" not in s.engine.bodies[0]
    assert "x-retort-capture" not in s.engine.headers[0]
    assert (row["capture"], row["status"], row["completion_tokens"]) == ("off", "completed", 2)
    assert (row["request"], row["params"], row["response_text"]) == ("null", "{}", [])
    assert on_disk(s.spool_dir, "canary") == []


async def test_a_request_can_ask_for_its_text_only(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        await s.client.post(CHAT, json=chat("hi"), headers={"x-retort-capture": "text"})
        (row,) = await s.rows()

    assert "vllm_xargs" not in s.engine.bodies[0]
    assert (row["capture"], row["response_text"]) == ("off", [s.engine.answer])


@pytest.mark.parametrize(
    ("policy", "capture", "texts"),
    [("full", "tap", ["canary"]), ("text", "off", ["canary"]), ("off", "off", [])],
)
async def test_a_route_says_what_is_kept(
    tmp_path: Path, policy: str, capture: str, texts: list[str]
) -> None:
    routes = {"support": {"url": "http://engine", "capture": policy}}
    async with stand(tmp_path, routes=routes) as s:
        s.engine.answer = "canary"
        await s.client.post(CHAT, json=chat("hi"), headers={"x-retort-capture": "on"})
        (row,) = await s.rows()

    assert ("vllm_xargs" in s.engine.bodies[0]) == (capture == "tap")
    assert (row["capture"], row["response_text"]) == (capture, texts)
    assert (row["request"] == "null") == (policy == "off")


@given(
    route=st.sampled_from(STRICTEST_FIRST),
    key=st.sampled_from(STRICTEST_FIRST),
    header=st.one_of(st.none(), st.binary(max_size=4), st.sampled_from([b"on", b"text", b"off"])),
    store=st.sampled_from([None, True, False]),
)
def test_nobody_is_asked_for_more_than_each_allows(
    route: Policy, key: Policy, header: bytes | None, store: bool | None
) -> None:
    headers = {} if header is None else {b"x-retort-capture": header}
    parsed: dict[str, object] = {} if store is None else {"store": store}
    policy = policy_of(route, key, headers, parsed)

    assert STRICTEST_FIRST.index(policy) <= min(map(STRICTEST_FIRST.index, (route, key)))
    assert policy == "off" or store is not False
    assert policy == policy_of(policy, policy, headers, parsed)


async def test_a_secret_in_the_request_is_not_written_and_nothing_is_captured(
    tmp_path: Path,
) -> None:
    async with stand(tmp_path) as s:
        s.serving.redactor = REDACTOR
        body = chat("I am bob@example.com, order ORD-17", stop=["bob@example.com"])
        await s.client.post(CHAT, json=body)
        (row,) = await s.rows()

    assert s.engine.bodies[0]["messages"] == body["messages"]
    assert "vllm_xargs" not in s.engine.bodies[0]
    assert row["capture"] == "off"
    (message,) = json.loads(str(row["request"]))["messages"]
    assert message["content"] == "I am [redacted:email], order [redacted:order]"
    assert json.loads(str(row["params"])) == {"stop": ["[redacted:email]"]}
    assert on_disk(s.spool_dir, "bob@") == on_disk(s.spool_dir, "ORD-17") == []


@pytest.mark.parametrize("stream", [False, True])
async def test_a_secret_in_the_answer_marks_the_row(tmp_path: Path, stream: bool) -> None:
    async with stand(tmp_path) as s:
        s.serving.redactor = REDACTOR
        s.engine.answer = "your card: 4111 1111 1111 1111"
        answer = await s.client.post(CHAT, json=chat("hi", stream=stream))
        (row,) = await s.rows()

    assert b"1111" in answer.content
    assert "vllm_xargs" in s.engine.bodies[0]
    assert (row["capture"], row["response_text"]) == ("redacted", ["your card: [redacted:card]"])
    assert on_disk(s.spool_dir, "1111") == []


async def test_clean_exchanges_are_captured_though_something_is_looked_for(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        s.serving.redactor = REDACTOR
        await s.client.post(CHAT, json=chat("hi", user="bob@example.com"))
        (row,) = await s.rows()

    assert row["capture"] == "tap"
    assert json.loads(str(row["request"]))["user"] == "[redacted:email]"


async def test_an_answer_that_was_cut_off_is_not_trusted(tmp_path: Path) -> None:
    async with stand(tmp_path) as s:
        s.serving.redactor = REDACTOR
        await s.client.post(CHAT, json=chat("break", stream=True))
        (row,) = await s.rows()

    assert (row["status"], row["capture"]) == ("failed", "redacted")


def test_a_prompt_of_token_ids_cannot_be_looked_through() -> None:
    keeping = Keeping.decide("full", REDACTOR, {"prompt": [[1, 2], [3]]})
    assert not keeping.allows_capture
    assert keeping.text(b"", {}, Answer()).request == '{"prompt":"[token ids]"}'


def test_reasoning_and_tool_calls_count_as_answer() -> None:
    keeping = Keeping.decide("full", REDACTOR, {})
    call = {"function": {"name": "f", "arguments": '{"to": "bob@example.com"}'}}
    calling = Answer({0: Choice(tool_calls=[call])})
    thinking = Answer({0: Choice(["hello"], hidden={"reasoning": ["bob@", "example.com"]})})

    called, thought = (keeping.text(b"{}", {}, answer) for answer in (calling, thinking))

    assert called.is_redacted
    assert "bob" not in str(called.tool_calls)
    assert thought.is_redacted
    assert thought.response_text == ["hello"]


def test_a_key_given_twice_cannot_hide_a_secret() -> None:
    body = b'{"stop": "bob@example.com", "stop": "fine"}'
    kept = Keeping.decide("full", REDACTOR, json.loads(body)).text(body, {}, Answer())
    assert kept.request == '{"stop":"fine"}'
