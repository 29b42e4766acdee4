"""What can go wrong in a correct program that captures or reads the log.

CaptureError
    ConfigError      the configuration file
    SpoolError       a spool segment or its folder
    LogError         the committed tables
        ConflictError    somebody else changed them at the same time
    EngineError      a vLLM process
"""

from pathlib import Path

from capture.damage import Damage


class CaptureError(Exception):
    """Base of this package's errors; the message says what to do next."""


class ConfigError(CaptureError):
    """Raised when ``retort.toml`` is missing, malformed or holds a wrong value."""


class SpoolError(CaptureError):
    """Raised when nothing of a segment can be read in order.

    Attributes:
        damage: Where and why.
    """

    def __init__(self, path: Path, damage: Damage) -> None:
        super().__init__(f"{path}: {damage}")
        self.damage = damage


class LogError(CaptureError):
    """Raised when the committed tables are missing or cannot answer."""


class ConflictError(LogError):
    """Raised when somebody else's change came in between; nothing has happened, try again."""


class EngineError(CaptureError):
    """Raised when a vLLM process does not start or dies; carries the end of its log."""
