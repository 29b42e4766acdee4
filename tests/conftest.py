import os

import pytest

# Two threads that wait for each other beside other work take twenty times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="How many processes are killed.")
    parser.addoption(
        "--interleavings", type=int, default=25, help="How many histories of spool and log."
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
