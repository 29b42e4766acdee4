"""Log-probabilities that vLLM gives the tokens of some prompts, model after model in one process.

Run as a program: arguments are a dtype of vLLM's, a JSON file of prompts and the models' folders;
prints JSON.
"""

import gc
import json
import sys
from pathlib import Path

from vllm import LLM, SamplingParams


def main(dtype: str, prompts_file: str, *folders: str) -> None:
    prompts = json.loads(Path(prompts_file).read_text())
    print(json.dumps({folder: logprobs(folder, prompts, dtype) for folder in folders}))  # noqa: T201


def logprobs(folder: str, prompts: list[list[int]], dtype: str) -> list[list[float]]:
    engine = LLM(folder, dtype=dtype, enforce_eager=True, max_model_len=256, max_num_seqs=4)
    wanted = SamplingParams(max_tokens=1, temperature=0, prompt_logprobs=0)
    answers = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompts], wanted, use_tqdm=False
    )
    del engine
    gc.collect()
    return [
        [entry[token].logprob for entry, token in zip(a.prompt_logprobs[1:], ids[1:], strict=True)]
        for a, ids in zip(answers, prompts, strict=True)
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
