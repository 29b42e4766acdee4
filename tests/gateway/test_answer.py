import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.answer import read_answer

PIECES = ["one ", "two ", "wörld", "\n"]


def event(body: object) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


def stream(pieces: list[str], *, done: bool = True) -> bytes:
    events = [
        event({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
        for piece in pieces
    ]
    events.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    usage = {"prompt_tokens": 5, "completion_tokens": 9}
    events.append(event({"choices": [], "usage": usage}))
    return b"".join([*events, b"data: [DONE]\n\n" if done else b""])


def test_a_body_is_read() -> None:
    choices = [
        {"index": 1, "message": {"content": "two"}, "finish_reason": "length"},
        {"index": 0, "message": {"content": "one"}, "finish_reason": "stop"},
    ]
    usage = {"prompt_tokens": 1, "completion_tokens": 2}
    body = json.dumps({"choices": choices, "usage": usage}).encode()

    answer = read_answer([body[:9], body[9:]], stream=False)

    assert answer.texts == ["one", "two"]
    assert answer.finish_reasons == ["stop", "length"]
    assert (answer.prompt_tokens, answer.completion_tokens, answer.is_whole) == (1, 2, True)


@given(cuts=st.lists(st.integers(0, len(stream(PIECES))), max_size=12))
def test_any_split_of_a_stream_gives_the_same_answer(cuts: list[int]) -> None:
    body = stream(PIECES)
    edges = [0, *sorted(cuts), len(body)]
    chunks = [body[a:b] for a, b in itertools.pairwise(edges)]

    answer = read_answer(chunks, stream=True)

    assert answer.texts == ["".join(PIECES)]
    assert (answer.finish_reasons, answer.completion_tokens) == (["stop"], 9)
    assert answer.is_whole


def test_a_stream_without_its_end_is_not_whole() -> None:
    assert not read_answer([stream(PIECES, done=False)], stream=True).is_whole


def test_completions_and_tool_calls_are_read() -> None:
    text = read_answer([b'{"choices": [{"index": 0, "text": "t"}]}'], stream=False)
    call = {"id": "1", "function": {"name": "f", "arguments": "{}"}}
    message = {"content": None, "tool_calls": [call]}
    tools = read_answer(
        [json.dumps({"choices": [{"index": 0, "message": message}]}).encode()], stream=False
    )

    assert text.texts == ["t"]
    assert tools.texts == [""]
    assert json.loads(tools.tool_calls or "") == [[call]]


def test_streamed_tool_calls_and_reasoning_are_joined() -> None:
    whole = {"index": 0, "id": "1", "type": "function"}
    parts: list[dict[str, object]] = [
        {"reasoning": "the "},
        {"reasoning": "mail"},
        {"tool_calls": [{**whole, "function": {"name": "f", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a": "b@'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": 'c.de"}'}}]},
        {"tool_calls": [{"index": 1, "id": "2", "function": {"name": "g", "arguments": "{}"}}]},
    ]
    body = b"".join(event({"choices": [{"index": 0, "delta": part}]}) for part in parts)

    answer = read_answer([body, b"data: [DONE]\n\n"], stream=True)

    first = {**whole, "function": {"name": "f", "arguments": '{"a": "b@c.de"}'}}
    second = {"index": 1, "id": "2", "function": {"name": "g", "arguments": "{}"}}
    assert answer.calls == [[first, second]]
    assert answer.hidden_texts == ["the mail"]


def test_an_error_inside_a_stream_is_seen() -> None:
    broken = event({"error": {"message": "m", "type": "server_error"}}) + b"data: [DONE]\n\n"

    answer = read_answer([broken], stream=True)

    assert (answer.error_type, answer.is_whole) == ("server_error", False)


@given(body=st.binary(max_size=200), is_stream=st.booleans())
def test_garbage_is_never_a_whole_answer(body: bytes, is_stream: bool) -> None:
    answer = read_answer([body], stream=is_stream)

    assert answer.texts == []
    assert not answer.is_whole or body.strip().endswith(b"[DONE]")
