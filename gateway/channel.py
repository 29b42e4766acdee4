"""Messages between the processes of one gateway, over a socket pair that only they hold.

Either end asks and tells. An answer is what the other end's handler returns or raises. Messages
are pickled: nobody else can write to the pair.
"""

import asyncio
import contextlib
import logging
import pickle
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Any, Self

from gateway.errors import GatewayError, WorkerLostError

Handler = Callable[[Any], Awaitable[Any]]
HEAD = struct.Struct("!I")
logger = logging.getLogger(__name__)


class Channel:
    """One end; used from one event loop. ``run`` it for as long as it is used."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._handling: set[asyncio.Task[None]] = set()
        self._is_lost = False

    @classmethod
    async def opened(cls, pair: socket.socket, handlers: Mapping[str, Handler]) -> Self:
        """Take one end of a socket pair.

        Args:
            pair: The socket; closed when ``run`` ends.
            handlers: What to call for each kind of message, with what it carries.
        """
        reader, writer = await asyncio.open_unix_connection(sock=pair)
        return cls(reader, writer, handlers)

    @property
    def backlog_bytes(self) -> int:
        """What the other end has not taken yet."""
        return self._writer.transport.get_write_buffer_size()

    def tell(self, kind: str, carried: object = None) -> None:
        """Say something that needs no answer; lost if the other end is."""
        self._put((0, kind, carried))

    async def ask(self, kind: str, carried: object = None) -> Any:  # noqa: ANN401  as the kind says
        """Say something and wait for what the other end makes of it.

        Raises:
            WorkerLostError: If the other end has ended, or ends before it answers.
            GatewayError: Whatever its handler raises.
        """
        if self._is_lost:
            raise WorkerLostError("the other process has ended")
        number = next(self._numbers)
        asked = self._asked[number] = asyncio.get_running_loop().create_future()
        self._put((number, kind, carried))
        try:
            return await asked
        finally:
            del self._asked[number]

    def close(self) -> None:
        """Let the other end know that this was all; ``run`` does so when it ends."""
        self._writer.close()

    async def run(self) -> None:
        """Take what the other end says until it ends."""
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    (size,) = HEAD.unpack(await self._reader.readexactly(HEAD.size))
                    self._take(*pickle.loads(await self._reader.readexactly(size)))  # noqa: S301
        finally:
            self._is_lost = True
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(WorkerLostError("the other process has ended"))
            for task in self._handling:
                task.cancel()
            self.close()

    def _take(self, number: int, kind: str, carried: object) -> None:
        """Answers bear the number of what they answer, made negative."""
        if number < 0:
            asked = self._asked.get(-number)
            if asked is not None and not asked.done():
                if isinstance(carried, GatewayError):
                    asked.set_exception(carried)
                else:
                    asked.set_result(carried)
            return
        task = asyncio.create_task(self._handle(number, kind, carried))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, number: int, kind: str, carried: object) -> None:
        answer: object
        try:
            answer = await self._handlers[kind](carried)
        except GatewayError as error:
            answer = error
        except Exception:  # the border: one message must not end the process
            logger.exception("%s of another process failed", kind)
            answer = GatewayError(f"{kind} failed in another process")
        if number:
            self._put((-number, kind, answer))

    def _put(self, message: tuple[int, str, object]) -> None:
        if self._is_lost:
            return
        body = pickle.dumps(message)
        self._writer.write(HEAD.pack(len(body)) + body)
