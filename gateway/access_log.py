"""One line of JSON per request: who asked what, who answered, how long it took. Never any text."""

import contextlib
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

import orjson

from gateway.errors import GatewayError
from gateway.exchange import Exchange

STDOUT = "-"
logger = logging.getLogger(__name__)


class AccessLog:
    """Lines on a file, or on stdout; a file that was moved away is begun anew by ``reopen``."""

    def __init__(self, path: Path) -> None:
        """Open a file for appending; ``-`` is stdout.

        Raises:
            OSError: If it cannot be written.
        """
        self._path = path
        self._file = self._open()

    def _open(self) -> TextIO:
        if str(self._path) == STDOUT:
            return sys.stdout
        return self._path.open("a", encoding="utf-8", buffering=1)

    def reopen(self) -> None:
        """Go on in a new file, where somebody has moved the old one away."""
        try:
            file = self._open()
        except OSError as error:
            logger.warning("the access log stays in its old file: %s", error)
            return
        self.close()
        self._file = file

    def close(self) -> None:
        """Close the file."""
        if self._file is not sys.stdout:
            with contextlib.suppress(OSError):
                self._file.close()

    def write(self, exchange: Exchange) -> None:
        """Write an ended exchange's line."""
        request, answer, key = exchange.request, exchange.answer, exchange.request.key
        self._put(
            {
                "time": exchange.started_at,
                "exchange_id": exchange.exchange_id,
                "endpoint": request.endpoint,
                "route": request.route,
                "deployment": exchange.deployment.name,
                "role": exchange.role,
                "tenant": None if key is None else key.tenant,
                "key_id": None if key is None else key.id,
                "stream": request.stream,
                "status": exchange.status,
                "http_status": exchange.http_status,
                "error": exchange.error_type or answer.error_type,
                "capture": exchange.capture,
                "prompt_tokens": answer.prompt_tokens,
                "completion_tokens": answer.completion_tokens,
                "queued_ms": _ms(exchange.queued_seconds),
                "ttft_ms": _ms(exchange.ttft_seconds),
                "duration_ms": _ms(exchange.duration_seconds),
                "overhead_ms": _ms(exchange.overhead_seconds),
            }
        )

    def refuse(self, error: GatewayError) -> None:
        """Write the line of a request that no engine was asked."""
        reason = error.code or error.type
        now = datetime.now(UTC)
        self._put({"time": now, "status": "refused", "http_status": error.status, "error": reason})

    def _put(self, line: dict[str, object]) -> None:
        with contextlib.suppress(OSError):  # a full disk must not cost an answer
            self._file.write(orjson.dumps(line).decode() + "\n")


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)
