import re
from datetime import UTC, datetime, timedelta

import pytest

from capture.errors import ConfigError
from capture.selection import Selection, parse_moment

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", datetime(2026, 1, 31, tzinfo=UTC)),
        ("2026-01-31T12:30", datetime(2026, 1, 31, 12, 30, tzinfo=UTC)),
        ("2026-01-31T12:30+02:00", datetime(2026, 1, 31, 10, 30, tzinfo=UTC)),
        ("30d", NOW - timedelta(days=30)),
        ("12 h", NOW - timedelta(hours=12)),
        ("4w", NOW - timedelta(weeks=4)),
    ],
)
def test_a_moment_is_a_date_a_time_or_how_long_ago(text: str, moment: datetime) -> None:
    assert parse_moment(text, NOW) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "30", "30m", "2026-13-01", "-1d"])
def test_what_is_no_moment_is_shown(text: str) -> None:
    with pytest.raises(ConfigError, match=f"'{re.escape(text)}' is no moment"):
        parse_moment(text, NOW)


def test_nothing_asked_for_is_everything() -> None:
    assert Selection().is_everything
    assert not Selection(exchanges=["a"]).is_everything
    assert not Selection(tenant="").is_everything
