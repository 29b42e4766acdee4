import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="How many processes are killed.")
    parser.addoption(
        "--interleavings", type=int, default=25, help="How many histories of spool and log."
    )


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
