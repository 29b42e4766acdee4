"""A gate in front of a server, to be shut while somebody is on his way.

``python -m tests.support.gate PORT`` is a process of its own: deltalake does not let other
threads run while it waits for some answers. It obeys lines on standard input.
"""

import asyncio
import contextlib
import subprocess
import sys
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class Gate:
    """Passes connections on to a server of this machine, one request each.

    Attributes:
        url: Where clients knock.
    """

    def __init__(self, server_port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.gate", str(server_port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = f"http://127.0.0.1:{self._answer()}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: object, _trace: TracebackType | None
    ) -> None:
        with self._process:
            self._process.kill()

    def shut(self) -> None:
        """Refuse connections from now on."""
        self._tell("shut")

    def open(self) -> None:
        """Let connections in again."""
        self._tell("open")

    def lose_answer(self, method: str, part: str) -> None:
        """Pass the next request of this kind on to the server, and its answer to nobody."""
        self._tell(f"lose {method} {part}")

    def has_lost_it(self) -> bool:
        """Whether such a request has come since."""
        return self._tell("lost") == "True"

    def _tell(self, line: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


class _Keeper:
    """What runs inside the process."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lost: tuple[str, str] | None = None
        self._listener: asyncio.Server | None = None
        self._port = 0

    async def obey(self) -> None:
        """Open, then do what each line says; say whether an answer was lost."""
        lines = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), sys.stdin
        )
        await self._open()
        print(self._port, flush=True)  # noqa: T201  the parent reads it
        while line := (await lines.readline()).decode().strip():
            command, *words = line.split()
            if command == "lose":
                self._lost = (words[0], words[1])
            elif command == "open":
                await self._open()
            elif command == "shut":
                self._shut()
            print(self._lost is None, flush=True)  # noqa: T201

    async def _open(self) -> None:
        self._listener = await asyncio.start_server(
            self._pass_on, "127.0.0.1", self._port, reuse_address=True
        )
        self._port = self._listener.sockets[0].getsockname()[1]

    def _shut(self) -> None:
        assert self._listener is not None
        self._listener.close()

    async def _pass_on(self, client: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        # Clients connect in advance, and the server has only one thread: no word, no connection.
        with contextlib.suppress(ConnectionError):
            if first := await client.read(CHUNK_BYTES):
                answer = await self._ask(first, client)
                if not self._loses(first):
                    back.write(answer)
                    await back.drain()
        back.close()

    async def _ask(self, first: bytes, client: asyncio.StreamReader) -> bytes:
        """Pass a request on, and read until the server closes, as HTTP/1.0 does."""
        answer, server = await asyncio.open_connection("127.0.0.1", self._server_port)
        server.write(first)
        copying = asyncio.create_task(_copy(client, server))
        try:
            return await answer.read()
        finally:
            copying.cancel()
            server.close()

    def _loses(self, first: bytes) -> bool:
        line = first.split(b"\r\n", 1)[0].decode()
        if self._lost is None or not line.startswith(self._lost[0]) or self._lost[1] not in line:
            return False
        self._lost = None
        return True


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(CHUNK_BYTES):
            target.write(data)
            await target.drain()


if __name__ == "__main__":
    asyncio.run(_Keeper(int(sys.argv[1])).obey())
