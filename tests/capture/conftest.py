import json
from collections.abc import Callable
from pathlib import Path

import pytest

from capture import recorder
from tests.support.tap import SETTINGS

TapSettings = Callable[..., None]


@pytest.fixture
def tap_settings(monkeypatch: pytest.MonkeyPatch) -> TapSettings:
    """Changes what the next tap reads."""

    def change(**settings: object) -> None:
        monkeypatch.setenv("RETORT_TAP", json.dumps({**SETTINGS, **settings}))

    return change


@pytest.fixture
def spool(tmp_path: Path, tap_settings: TapSettings, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where taps write; they look for new rows all the time."""
    monkeypatch.setenv("RETORT_SPOOL", str(tmp_path / "spool"))
    tap_settings()
    monkeypatch.setattr(recorder, "TICK_SECONDS", 0.001)
    return tmp_path / "spool"
