"""Chats as JSON lines, ``{"messages": [...]}``: what every fine-tuning program and API takes.

Lost: ids and distributions of the tokens, so an imported chat is an exchange but no example; the
exchange's id, route, model, revision, parameters and time; tool calls of the answer; answers to a
prompt of token ids, which are left out.
"""

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from capture.examples import Row
from capture.lines import read_lines, wrong_line


def write_chat(path: Path, rows: Iterable[Row]) -> None:
    """Write a chat per example."""
    with path.open("wb") as file:
        for row in rows:
            messages = messages_of(row)
            if messages is not None:
                file.write(orjson.dumps({"messages": messages}) + b"\n")


def read_chat(path: Path) -> Iterator[Row]:
    """Read chats that end with the assistant's answer; equal chats get equal ids.

    Raises:
        LogError: If a line is no such chat.
    """
    for number, document in read_lines(path):
        messages = document.get("messages")
        if not isinstance(messages, list) or not messages:
            raise wrong_line(path, number, 'expected {"messages": [...]}')
        *asked, answer = messages
        if not isinstance(answer, dict) or answer.get("role") != "assistant":
            raise wrong_line(path, number, "the last message is not the assistant's")
        key = orjson.dumps(messages, option=orjson.OPT_SORT_KEYS)
        yield {
            "exchange_id": hashlib.sha256(key).hexdigest()[:32],
            "request": orjson.dumps({"messages": asked}).decode(),
            "response_text": answer.get("content") or "",
        }


def messages_of(row: Row) -> list[object] | None:
    """The conversation of an example with its answer; None if its prompt was no text."""
    request = orjson.loads(row["request"])
    messages, prompt = request.get("messages"), request.get("prompt")
    if not isinstance(messages, list):
        if not isinstance(prompt, str):
            return None
        messages = [{"role": "user", "content": prompt}]
    return [*messages, {"role": "assistant", "content": row["response_text"] or ""}]
