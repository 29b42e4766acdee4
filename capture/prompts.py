"""Files of chats to be asked, ``{"messages": [{"role", "content"}, ...]}`` a line."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from capture.errors import ConfigError

T = TypeVar("T")


def read_chats(path: Path, take: Callable[[str], T]) -> list[T]:
    """Take every line that is not empty.

    Args:
        path: Of the file.
        take: Makes of a line what is wanted; raises ``ValueError``, ``TypeError`` or ``KeyError``
            if it is not a chat of texts.

    Raises:
        ConfigError: If the file is missing, empty, or a line is not a chat; with its number,
            without its words.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; expected a chat-form JSONL file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found.append(take(line))
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f'{path}:{number}: expected {{"messages": [{{"role", "content"}}, ...]}} with texts'
            ) from error
    if not found:
        raise ConfigError(f"{path}: no prompts in it")
    return found
