import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.reading import read_answer

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


RESPONSE = {
    "object": "response",
    "status": "completed",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "one two"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ],
    "usage": {"input_tokens": 5, "output_tokens": 9},
}


def named(kind: str, **body: object) -> bytes:
    return f"event: {kind}\n".encode() + event({"type": kind, **body})


def test_a_response_is_read_whole_and_streamed() -> None:
    whole = read_answer([json.dumps(RESPONSE).encode()], stream=False)
    begun = [
        named("response.created", response={**RESPONSE, "status": "in_progress"}),
        named("response.output_text.delta", delta="one "),
        named("response.output_text.delta", delta="two"),
    ]
    cut = read_answer(begun, stream=True)
    streamed = read_answer([*begun, named("response.completed", response=RESPONSE)], stream=True)

    for answer in (whole, streamed):
        assert answer.texts == ["one two"]
        assert answer.hidden_texts == ["hm"]
        assert answer.finish_reasons == ["stop"]
        assert (answer.prompt_tokens, answer.completion_tokens, answer.is_whole) == (5, 9, True)
        assert [call["name"] for call in answer.calls[0] if isinstance(call, dict)] == ["f"]
    assert (cut.texts, cut.is_whole, cut.num_pieces) == (["one two"], False, 2)


def test_a_message_is_read_whole_and_streamed() -> None:
    content = [
        {"type": "text", "text": "one two"},
        {"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}},
    ]
    usage = {"input_tokens": 5, "output_tokens": 9}
    body = {"type": "message", "content": content, "stop_reason": "end_turn", "usage": usage}
    whole = read_answer([json.dumps(body).encode()], stream=False)
    text = {"type": "text_delta"}
    begun = [
        named("message_start", message={"usage": {"input_tokens": 5, "output_tokens": 0}}),
        named("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        named("content_block_delta", index=0, delta={**text, "text": "one "}),
        named("content_block_delta", index=0, delta={**text, "text": "two"}),
        named("content_block_start", index=1, content_block={"type": "tool_use", "name": "f"}),
        named("content_block_delta", index=1, delta={"partial_json": '{"a"'}),
        named("content_block_delta", index=1, delta={"partial_json": ": 1}"}),
        named("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 9}),
    ]
    cut = read_answer(begun, stream=True)
    streamed = read_answer([*begun, named("message_stop")], stream=True)

    for answer in (whole, streamed):
        assert answer.texts == ["one two"]
        assert answer.finish_reasons == ["end_turn"]
        assert (answer.prompt_tokens, answer.completion_tokens, answer.is_whole) == (5, 9, True)
    (calls,) = whole.calls
    (streamed_calls,) = streamed.calls
    assert isinstance(calls[0], dict)
    assert isinstance(streamed_calls[0], dict)
    assert calls[0]["input"] == {"a": 1}
    assert streamed_calls[0]["input"] == '{"a": 1}'
    assert not cut.is_whole


NAMES = st.sampled_from(
    [
        *("type", "object", "choices", "delta", "message", "content", "output", "usage", "index"),
        *("response", "content_block", "tool_calls", "function", "arguments", "error", "text"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
KINDS = st.sampled_from(
    [
        *("response", "response.completed", "response.output_text.delta", "message"),
        *("message_start", "content_block_start", "content_block_delta", "message_delta"),
        "chat.completion",
    ]
)


@given(st.lists(st.tuples(KINDS, st.dictionaries(NAMES, JSON, max_size=5)), max_size=4))
def test_whatever_an_engine_says_can_be_read(
    documents: list[tuple[str, dict[str, object]]],
) -> None:
    for body in ({"type": kind, "object": kind, **body} for kind, body in documents):
        read_answer([json.dumps(body).encode()], stream=False)
        read_answer([event(body), b"data: [DONE]\n\n"], stream=True)


@given(st.lists(st.binary(max_size=20), max_size=5), st.booleans())
def test_whatever_bytes_come_can_be_read(chunks: list[bytes], stream: bool) -> None:
    read_answer([b"data: ", *chunks], stream=stream)
