"""A real PostgreSQL server on loopback, started and stopped by the tests that need one."""

import os
import shutil
import subprocess
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
def postgres_server(folder: Path) -> Iterator[str]:
    """Run a server of its own with an empty database; its SQLAlchemy URL without the name."""
    initdb, pg_ctl = find("initdb"), find("pg_ctl")
    assert initdb is not None
    assert pg_ctl is not None
    user = SERVER_USER if os.geteuid() == 0 else None
    data, port = folder / "data", free_port()
    if user is not None:
        for outer in (folder, *folder.parents[:2]):
            outer.chmod(0o755)
        shutil.chown(folder, user)

    def run(*words: str | Path) -> None:
        subprocess.run(words, user=user, check=True, cwd=folder, stdout=subprocess.DEVNULL)

    run(initdb, "-D", data, "-U", "retort", "-A", "trust", "-N")
    options = f"-p {port} -h 127.0.0.1 -k '' -c fsync=off"
    run(pg_ctl, "-D", data, "-o", options, "-l", folder / "log", "-w", "start")
    try:
        yield f"postgresql+psycopg://retort@127.0.0.1:{port}"
    finally:
        run(pg_ctl, "-D", data, "-m", "immediate", "stop")
