"""Logs of traffic whose volume, wording and models are known."""

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from capture.rows import ExchangeRow
from tests.support.log_folders import filled
from tests.support.log_rows import exchange_row

BEGIN = datetime(2026, 11, 16, tzinfo=UTC)
NARROW = ("please", "cancel", "change", "track", "my", "order", "parcel", "for", "the", "lamp")
BROAD = tuple(f"word{number}" for number in range(20_000))


def requests(
    num: int,
    days: float,
    *,
    words: tuple[str, ...] = NARROW,
    length: int = 12,
    route: str = "support",
) -> list[ExchangeRow]:
    """Chats evenly spread over some days, of words drawn by chance."""
    random_words = random.Random(0)
    step = timedelta(days=days) / max(num - 1, 1)

    def text() -> str:
        return " ".join(random_words.choices(words, k=length))

    return [
        replace(
            exchange_row(f"{route}{number}", texts=(text(),)),
            route=route,
            started_at=BEGIN + number * step,
            request=json.dumps(
                {
                    "messages": [
                        {"role": "system", "content": "Answer in JSON."},
                        {"role": "user", "content": text()},
                    ]
                }
            ),
            prompt_tokens=2000,
            completion_tokens=500,
        )
        for number in range(num)
    ]


def log_of(folder: Path, *rows: ExchangeRow) -> Path:
    """Write a log and the configuration that names it."""
    folder.mkdir(exist_ok=True)
    filled(folder, exchanges=rows)
    config = folder / "retort.toml"
    config.write_text('[capture]\nlog = "log"\n')
    return config
