"""A folder that one run at a time writes to."""

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from capture.errors import ConfigError
from capture.locks import locked_if_free

logger = logging.getLogger(__name__)

LOCK = ".lock"  # there while a run lives, and after one that was killed


@contextmanager
def occupied(out: Path) -> Iterator[None]:
    """Keep other runs out of a folder, which is made, as long as this process lives.

    Raises:
        ConfigError: If another run is writing to it.
    """
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
