"""Buckets of an S3 server of our own, each behind a gate."""

import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from capture.config import CaptureConfig
from capture.engine import free_port
from capture.store import S3Path
from tests.support.gate import Gate
from tests.support.killable import Killable


@contextmanager
def s3_server(folder: Path) -> Iterator[int]:
    """Run a server in a process of its own; gives its port."""
    port = free_port()
    command = [sys.executable, "-m", "tests.support.s3_server", str(port)]
    server = Killable(command, f"http://127.0.0.1:{port}/", folder / "s3.log")
    try:
        yield port
    finally:
        server.kill()


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket.

    Attributes:
        name: Its name.
        gate: What every request to it goes through.
    """

    name: str
    gate: Gate

    @property
    def log(self) -> S3Path:
        return S3Path(self.name, "team/log")

    def config(self, spool: Path) -> CaptureConfig:
        """A configuration whose log is here."""
        return CaptureConfig(log=self.log, spool=spool, commit_seconds=0.01)

    def objects(self) -> dict[str, bytes]:
        """All there is, by key."""
        root = S3Path(self.name, "")
        return {key: (root / key).read_bytes() for key, _ in root.objects()}


@contextmanager
def new_bucket(server_port: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """Make a bucket and let the environment lead to it."""
    name = f"retort-{uuid.uuid4().hex}"
    httpx.put(f"http://127.0.0.1:{server_port}/{name}").raise_for_status()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with Gate(server_port) as gate:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gate.url)
        yield Bucket(name, gate)
