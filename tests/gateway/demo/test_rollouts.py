import asyncio
import tomllib
from pathlib import Path

import httpx

from gateway.demo.rollouts import Operator
from gateway.demo.workspace import Workspace
from tests.gateway.test_relay import chat
from tests.support.gateway_process import configure, started


async def test_an_operator_never_asks_on_a_connection_that_idled(tmp_path: Path) -> None:
    """The gateway closes those, perhaps while a request is under way."""
    num_asked: list[int] = []  # on each connection

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        num_asked.append(0)
        place = len(num_asked) - 1
        while await reader.readline():
            while (await reader.readline()).strip():
                pass
            num_asked[place] += 1
            if num_asked[place] > 1:
                break
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2"
            writer.write(head + b"\r\n\r\n{}")
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "admin.key").write_text("key", encoding="utf-8")
    operator = Operator(Workspace(tmp_path, tmp_path, port, port))

    answers = [await operator.call("GET", "/admin/rollouts/x") for _ in range(3)]

    assert answers == [{}] * 3
    assert num_asked == [1, 1, 1]
    await operator.close()
    server.close()


async def test_the_incumbents_engine_is_found_where_it_listens(tmp_path: Path) -> None:
    config = configure(tmp_path)
    with started(config) as gateway:
        gateway.wait_ready()
        table = tomllib.loads(config.read_text())["gateway"]
        ports = (int(table[name].rpartition(":")[2]) for name in ("listen", "admin_listen"))
        operator = Operator(Workspace(tmp_path, tmp_path, *ports))
        url = await operator.incumbent_url()
        await operator.close()
        async with httpx.AsyncClient() as client:
            answer = await client.post(url + "/v1/chat/completions", json=chat("hi"))

    assert answer.is_success
