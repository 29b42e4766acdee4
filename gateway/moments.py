"""Which requests stand for their moment: those of one moment share its fate."""

from math import inf

SECONDS = 1.0


class Moments:
    """Picks the first request of every moment, before anybody knows how long it will take."""

    def __init__(self) -> None:
        self._began = -inf

    def begins(self, now: float) -> bool:
        """Whether a request of this time is the first since one was ``SECONDS`` ago.

        Args:
            now: Monotonic seconds, never less than before.
        """
        if now < self._began + SECONDS:
            return False
        self._began = now
        return True
