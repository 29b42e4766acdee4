"""Run a command that must not outlive its parent: ``python -m capture.watchdog ENV COMMAND...``.

``ENV`` is a JSON object of environment overrides. The command gets a session of its own. When
standard input ends (the parent closed it or died, however), or on SIGTERM, the whole process
group is terminated, and killed if it is still there after ``GRACE_SECONDS``.
"""

import json
import os
import signal
import subprocess
import sys
import threading

GRACE_SECONDS = 5.0


def main(arguments: list[str]) -> int:
    """Start the command, wait for its end or the parent's, leave nothing behind."""
    overrides, *command = arguments
    child = subprocess.Popen(
        command,
        env={**os.environ, **json.loads(overrides)},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    signal.signal(signal.SIGTERM, lambda *_: _signal_group(child.pid, signal.SIGTERM))
    threading.Thread(target=_end_with_parent, args=(child.pid,), daemon=True).start()
    code = child.wait()
    _signal_group(child.pid, signal.SIGKILL)
    return code if code >= 0 else 128 - code


def _end_with_parent(group: int) -> None:
    """Block until standard input ends, then end the group."""
    while sys.stdin.buffer.read(4096):
        pass
    _signal_group(group, signal.SIGTERM)
    killer = threading.Timer(GRACE_SECONDS, _signal_group, args=(group, signal.SIGKILL))
    killer.daemon = True
    killer.start()


def _signal_group(group: int, number: signal.Signals) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
