"""A real PostgreSQL server on loopback, started and stopped by the tests that need one."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from capture.engine import free_port

SERVER_USER = "postgres"  # it refuses to run as root


def find(program: str) -> str | None:
    """A program of PostgreSQL's, on the path or where Debian puts it."""
    debian = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return shutil.which(program) or (str(debian[-1]) if debian else None)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server of its own with an empty database; its SQLAlchemy URL without the name."""
    initdb, pg_ctl = find("initdb"), find("pg_ctl")
    assert initdb is not None
    assert pg_ctl is not None
    user = SERVER_USER if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="retort-postgres-") as name:
        folder = Path(name)
        if user is not None:
            shutil.chown(folder, user)
        with _running(folder, user, port, initdb, pg_ctl):
            yield f"postgresql+psycopg://retort@127.0.0.1:{port}"


@contextmanager
def _running(folder: Path, user: str | None, port: int, initdb: str, pg_ctl: str) -> Iterator[None]:
    data = folder / "data"

    def run(*words: str | Path) -> None:
        subprocess.run(words, user=user, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    run(initdb, "-D", data, "-U", "retort", "-A", "trust", "-N")
    options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off"
    run(pg_ctl, "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "stop")
