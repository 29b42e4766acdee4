"""A Ray cluster of this machine's cores that looks for duplicates.

``python -m tests.support.clustered run.toml...`` prints, for each, which rows are kept.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

import ray

import trainer.cluster_data as cluster_data_module
from trainer.config import load
from trainer.part import find

if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster_data_module.MARKS_PER_PART = 4096  # several parts
    configs = [load(Path(name)) for name in sys.argv[1:]]
    with redirect_stdout(sys.stderr):
        ray.init(num_cpus=2)
        found = [
            cluster_data_module.distinct_rows(config, find(config)).tolist() for config in configs
        ]
        ray.shutdown()
    sys.stdout.write(json.dumps(found))
