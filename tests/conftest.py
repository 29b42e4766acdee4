import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=20, help="How many processes are killed.")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
