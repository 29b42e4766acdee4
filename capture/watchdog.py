"""Run a command that must not outlive its parent: ``python -m capture.watchdog OPTIONS COMMAND``.

``OPTIONS`` is JSON: ``env`` (environment overrides), ``grace_seconds``, and ``scratch`` (names of
variables that hold a folder for what the command leaves lying). The command gets a session and
such a folder of its own, which is removed after it. When standard input ends (the parent closed it
or died, however), or on SIGTERM, it is terminated, so that it can end what it started in its own
order; whatever is left of its process group after the grace is killed.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time


def main(arguments: list[str]) -> int:
    """Start the command, wait for its end or the parent's, leave nothing behind."""
    options = json.loads(arguments[0])
    with tempfile.TemporaryDirectory(prefix="retort-", ignore_cleanup_errors=True) as scratch:
        env = dict.fromkeys(options["scratch"], scratch) | options["env"]
        return _run(arguments[1:], env, options["grace_seconds"])


def _run(command: list[str], env: dict[str, str], grace_seconds: float) -> int:
    """The command's exit code; 128 and the number of the signal that ended it."""
    child = subprocess.Popen(
        command,
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    watching = (child, grace_seconds)
    threading.Thread(target=_end_with_parent, args=watching, daemon=True).start()
    code = child.wait()
    _outlast_group(child.pid, grace_seconds)
    return code if code >= 0 else 128 - code


def _end_with_parent(child: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
    """Block until standard input ends, then end the command."""
    while os.read(sys.stdin.fileno(), 4096):  # no lock is held if we exit meanwhile
        pass
    child.terminate()
    killer = threading.Timer(grace_seconds, _signal_group, args=(child.pid, signal.SIGKILL))
    killer.daemon = True
    killer.start()


def _outlast_group(group: int, grace_seconds: float) -> None:
    """Let what the command started end by itself, then kill the rest."""
    deadline = time.monotonic() + grace_seconds
    while time.monotonic() < deadline and _signal_group(group, 0):
        time.sleep(0.02)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Send a signal (0: none) and say whether anybody was there."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
