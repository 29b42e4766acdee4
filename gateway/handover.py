"""One gateway takes over from another without refusing a connection.

The one that serves waits at a socket file in its ``run_dir``. Its successor, once its engines
generate, is handed the listening sockets there; the old one then takes no more connections,
finishes what it has begun and ends, which its successor sees by the file closing.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.config import host_and_port
from gateway.errors import HandoverError

NAME = "gateway.sock"
ASK = b"take over\n"
MAX_SOCKETS = 8
SECONDS = 10.0


@asynccontextmanager
async def waiting(
    run_dir: Path, sockets: Sequence[socket.socket], on_taken: Callable[[], None]
) -> AsyncIterator[None]:
    """Wait for a successor for as long as the context lasts.

    Args:
        run_dir: Where the successor looks for us.
        sockets: What it is handed.
        on_taken: Called when it has them; this process should end then.
    """

    async def attend() -> None:
        loop = asyncio.get_running_loop()
        while True:
            successor, _ = await loop.sock_accept(door)
            successor.settimeout(0)
            with successor, contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(SECONDS):
                    if await loop.sock_recv(successor, len(ASK)) != ASK:
                        continue
                socket.send_fds(successor, [ASK], [taken.fileno() for taken in sockets])
                successor.detach()  # open as long as this process: so it is told of our end
                on_taken()

    with _door(run_dir) as door:
        attending = asyncio.create_task(attend())
        try:
            yield
        finally:
            attending.cancel()
            await asyncio.gather(attending, return_exceptions=True)


def _door(run_dir: Path) -> socket.socket:
    """A socket file that only we can knock at; whoever had it before is forgotten."""
    door = socket.socket(socket.AF_UNIX)
    door.settimeout(0)
    with _short(run_dir) as folder:
        path = folder / NAME
        path.unlink(missing_ok=True)
        door.bind(str(path))
        path.chmod(0o600)
    door.listen()
    return door


@contextlib.contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """A name of a folder that a socket's address has room for."""
    number = os.open(folder, os.O_PATH)
    try:
        yield Path(f"/proc/self/fd/{number}")
    finally:
        os.close(number)


class Predecessor:
    """The gateway that serves now; relieve it once, when everything is ready."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._connection: socket.socket | None = None

    @classmethod
    def find(cls, run_dir: Path) -> "Predecessor":
        """See that it is there; it may take minutes until it is relieved.

        Raises:
            HandoverError: If nobody is there.
        """
        found = cls(run_dir)
        found._knock().close()
        return found

    def _knock(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(SECONDS)
        try:
            with _short(self._run_dir) as folder:
                connection.connect(str(folder / NAME))
        except OSError as error:
            connection.close()
            raise HandoverError(
                f"no gateway to take over from at {self._run_dir / NAME} ({error.strerror}); "
                "start without --take-over"
            ) from error
        return connection

    def hand_over(self) -> list[socket.socket]:
        """Take its listening sockets; it takes no more connections from now on.

        Raises:
            HandoverError: If it has ended meanwhile, or does not answer.
        """
        self._connection = self._knock()
        try:
            self._connection.sendall(ASK)
            _, numbers, _, _ = socket.recv_fds(self._connection, len(ASK), MAX_SOCKETS)
        except OSError as error:
            raise HandoverError(f"the gateway to take over from did not answer: {error}") from error
        if not numbers:
            raise HandoverError("the gateway to take over from has ended; leave out --take-over")
        return [socket.socket(fileno=number) for number in numbers]

    async def until_ended(self) -> None:
        """Wait until it has finished what it had begun, and ended."""
        if self._connection is None:
            return
        with self._connection as connection, contextlib.suppress(OSError):
            connection.settimeout(0)
            while await asyncio.get_running_loop().sock_recv(connection, 1):
                pass


def listening_at(address: str, sockets: Sequence[socket.socket]) -> socket.socket | None:
    """Which of some sockets listens at an address, if any does."""
    host, port = host_and_port(address)
    for candidate in sockets:
        where = candidate.getsockname()
        if where[1] == port and where[0] == host.strip("[]").replace("localhost", "127.0.0.1"):
            return candidate
    return None
