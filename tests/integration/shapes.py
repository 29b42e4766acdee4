"""Requests of every shape that apps send, good and bad, for each endpoint of a text engine."""

from collections.abc import Iterator
from typing import Any

Body = dict[str, Any]
Shape = tuple[str, Body]  # path, body

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
USER = {"role": "user", "content": "hello"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call_1",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
        }
    ],
}
SAMPLING: list[Body] = [
    {},
    {"max_tokens": 1},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.5, "seed": 3, "top_p": 0.5},
    {"temperature": 0.7, "seed": 4, "top_k": 5, "min_p": 0.01},
    {"n": 2, "temperature": 1.0, "seed": 5},
    {"stop": "e"},
    {"stop": ["e", "a"], "include_stop_str_in_output": True},
    {"stop_token_ids": [70, 71]},
    {"presence_penalty": 1.0},
    {"frequency_penalty": -1.0},
    {"repetition_penalty": 1.3},
    {"logit_bias": {"70": 5.0}},
    {"min_tokens": 4, "ignore_eos": True},
    {"bad_words": ["a"]},
    {"allowed_token_ids": [70, 71, 72]},
    {"skip_special_tokens": False},
    {"return_token_ids": True},
    {"user": "someone", "metadata": {"k": "v"}, "store": False},
    {"a_field_nobody_knows": {"deep": [1, 2, 3]}},
    {"structured_outputs": {"choice": ["yes", "no"]}},
    {"structured_outputs": {"regex": "[ab]{3}"}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "text"}},
    {"priority": 0},
    {"cache_salt": "mine"},
    {"temperature": -1},
    {"top_p": 2.0},
    {"n": 0},
    {"max_tokens": 0},
    {"max_tokens": 5000},
    {"logit_bias": {"nonsense": 1}},
    {"stop": [""]},
]
CHATS: list[Body] = [
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 5},
    {"top_logprobs": 5},
    {"logprobs": True, "top_logprobs": 2, "return_tokens_as_token_ids": True},
    {"max_completion_tokens": 3},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}},
    {"tools": [TOOL], "tool_choice": "none"},
    {"tools": [TOOL], "tool_choice": "auto"},
    {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}},
    {"tools": [TOOL, TOOL], "parallel_tool_calls": False, "tool_choice": "none"},
    {"messages": [{"role": "system", "content": "Be brief."}, USER]},
    {"messages": [USER, {"role": "assistant", "content": "hi"}, USER]},
    {"messages": [USER, CALL, {"role": "tool", "tool_call_id": "call_1", "content": "12"}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
    {"messages": [{"role": "user", "content": 'grüße 🙂 \u0000 \\ " </s>'}]},
    {"messages": [{"role": "user", "content": ""}]},
    {"messages": [{"role": "user", "content": "long " * 60}]},
    {"messages": [{"role": "user", "content": "too long " * 600}]},
    {"messages": []},
    {"messages": [{"role": "nobody", "content": "hello"}]},
    {"messages": [{"content": "hello"}]},
    {"messages": "hello"},
    {"echo": True},
    {"add_generation_prompt": False},
    {"messages": [USER, {"role": "assistant", "content": "he"}], "continue_final_message": True},
    {"chat_template_kwargs": {"enable_thinking": False}},
    {"include_reasoning": False, "reasoning_effort": "low"},
    {"prompt_logprobs": 1},
    {"chat_template": "{{ messages[0].content }}"},
]
COMPLETIONS: list[Body] = [
    {"prompt": ["hello", "goodbye"]},
    {"prompt": [72, 101, 108]},
    {"prompt": [[72, 101], [108, 108, 111]]},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [10**9]},
    {"prompt": None},
    {"echo": True},
    {"echo": True, "logprobs": 2},
    {"logprobs": 0},
    {"logprobs": 5},
    {"suffix": "the end"},
    {"prompt": "x" * 4000},
    {"truncate_prompt_tokens": 4},
]
RESPONSES: list[Body] = [
    {},
    {"instructions": "Be brief."},
    {"input": [{"role": "user", "content": "hello"}]},
    {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]},
    {"temperature": 0, "top_p": 0.9},
    {"text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA}}},
    {"tools": [{"type": "function", "name": "weather", "parameters": PARAMETERS}]},
    {"metadata": {"k": "v"}, "store": False, "user": "someone"},
    {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"previous_response_id": "resp_unknown"},
    {"input": []},
    {"max_output_tokens": -1},
]
MESSAGES: list[Body] = [
    {},
    {"system": "Be brief."},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]},
    {"temperature": 0, "top_k": 3, "top_p": 0.9},
    {"stop_sequences": ["e"]},
    {"tools": [{"name": "weather", "input_schema": PARAMETERS}], "tool_choice": {"type": "none"}},
    {"metadata": {"user_id": "someone"}},
    {"max_tokens": None},
    {"messages": []},
]
OTHERS: list[Shape] = [
    ("/v1/messages/count_tokens", {"messages": [USER]}),
    ("/v1/messages/count_tokens", {"messages": [USER], "system": "Be brief."}),
    ("/v1/embeddings", {"input": "hello"}),
    ("/v1/embeddings", {"input": ["hello", "goodbye"], "encoding_format": "base64"}),
    ("/tokenize", {"prompt": "hello"}),
    ("/tokenize", {"prompt": "hello", "return_token_strs": True}),
    ("/tokenize", {"messages": [USER]}),
    ("/tokenize", {}),
    ("/detokenize", {"tokens": [72, 101, 108]}),
    ("/detokenize", {"tokens": []}),
]


def shapes(model: str) -> Iterator[Shape]:
    """Every shape, most of them streamed as well; sampled ones with a seed, short and alike."""
    chat = {"messages": [USER], "max_tokens": 6, "temperature": 0}
    completion = {"prompt": "hello", "max_tokens": 6, "temperature": 0}
    families: list[tuple[str, Body, list[Body]]] = [
        ("/v1/chat/completions", chat, SAMPLING + CHATS),
        ("/v1/completions", completion, SAMPLING + COMPLETIONS),
        (
            "/v1/responses",
            {"input": "hello", "max_output_tokens": 6, "temperature": 0},
            RESPONSES,
        ),
        ("/v1/messages", chat, MESSAGES),
    ]
    for path, base, changes in families:
        for change in changes:
            body = {"model": model, **base, **change}
            yield path, body
            yield path, {**body, "stream": True}
    for usage in ({"include_usage": True}, {"include_usage": True, "continuous_usage_stats": True}):
        for path, base in (("/v1/chat/completions", chat), ("/v1/completions", completion)):
            yield path, {"model": model, **base, "stream": True, "stream_options": usage}
    yield from ((path, {"model": model, **body}) for path, body in OTHERS)
