"""A folder that one run at a time writes to."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from capture.errors import ConfigError
from capture.locks import locked_if_free

logger = logging.getLogger(__name__)

LOCK = ".lock"  # there while a run lives, and after one that was killed


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder as long as this process lives; it is made, if need be.

    One that was made and has nothing in it at the end goes again.

    Raises:
        ConfigError: If another run is writing to it.
    """
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    path = out / LOCK
    path.touch()
    with ExitStack() as held:
        try:
            file = held.enter_context(locked_if_free(path))
        except OSError as error:
            logger.warning("%s cannot be locked (%s): start no other run there", out, error)
        else:
            if file is None:
                raise ConfigError(f"another run is writing to {out}: choose another out")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            if is_new:
                with suppress(OSError):  # it is not empty
                    out.rmdir()
