import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.support.buckets import Bucket, new_bucket, s3_server

# Two threads that wait for each other beside other work take twenty times as long as one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="How many processes are killed.")
    parser.addoption(
        "--interleavings", type=int, default=25, help="How many histories of spool and log."
    )
    parser.addoption(
        "--outage-seconds", type=float, default=3.0, help="How long the object store is away."
    )


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each worker whole files, first those that take longest, so that both end together.

    Files that share an engine go to one worker, which starts it once.
    """
    items.sort(key=lambda item: item.get_closest_marker("engine") is None)
    sharing = {item.path for item in items if "tapped" in getattr(item, "fixturenames", ())}
    for item in items:
        group = "tapped" if item.path in sharing else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def s3_port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with s3_server(tmp_path_factory.mktemp("s3")) as port:
        yield port


@pytest.fixture
def bucket(s3_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    with new_bucket(s3_port, monkeypatch) as made:
        yield made


@pytest.fixture(scope="module")
def float32_products() -> Iterator[None]:
    """Products of float32 weights stay in float32, on CPUs that are faster in bfloat16 too."""
    from trainer import precision  # noqa: PLC0415 - loads torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "has_bfloat16", lambda _: False)
        yield
