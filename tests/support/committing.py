"""A machine that fills a spool of its own and commits it, round after round.

``python -m tests.support.committing SPOOL LOG NAME ROUNDS``: says ``ready``, begins when it is
sent a line.
"""

import sys

from capture.commit import Committer
from capture.config import CaptureConfig
from tests.support.log_folders import spool_exchanges, spool_logits
from tests.support.log_rows import exchange_row, logit_row

if __name__ == "__main__":
    spool, log, name, rounds = sys.argv[1:]
    config = CaptureConfig.model_validate({"spool": spool, "log": log})
    print("ready", flush=True)  # noqa: T201  the parent reads it
    sys.stdin.readline()
    for number in range(int(rounds)):
        spool_exchanges(config, exchange_row(f"{name}{number}"))
        spool_logits(config, logit_row(f"{name}{number}"))
        Committer(config).commit()
