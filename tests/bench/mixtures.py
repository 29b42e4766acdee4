"""Formats chosen by what each group of layers loses, beside arbitrary ones of the same size."""

import statistics
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from capture.log import Log
from capture.revision import tokenizer_hash
from quant.calibration import choose_rows, heldout_mask, only_tokenizer
from quant.compressor import batches_of
from quant.config import QuantConfig
from quant.making import make
from quant.mixing import search
from quant.paged import in_memory
from quant.reference import Reference
from quant.schemes import find_scheme
from quant.screen import Screen
from quant.target import largest_int8, this_target
from trainer.dataset import COLUMNS
from trainer.student import open_teacher

ARBITRARY = 5  # assignments
HELDOUT_ROWS = 200


def compare_mixtures(
    model: Path, log: Log, config: QuantConfig, budget: float, screen: Screen
) -> dict[str, float]:
    """KL to the model itself on held-out rows.

    Arbitrary assignments give INT8 to groups in random order while the budget lasts, INT4 to the
    others.
    """
    torch.set_num_threads(config.threads)
    table = log.read(log.snapshot(config.where), list(COLUMNS))
    table = only_tokenizer(table, tokenizer_hash(model))
    is_heldout = heldout_mask(table, config.heldout_fraction)
    rows, length = config.calibration_rows, config.max_length
    sample = choose_rows(table.filter(~is_heldout), rows, length, config.seed).sample
    held = choose_rows(table.filter(is_heldout), HELDOUT_ROWS, length, config.seed).sample
    cpu, target = torch.device("cpu"), this_target()
    largest = largest_int8(target)
    found = search(open_teacher(model, cpu), sample, config, largest, in_memory, screen)
    batches = list(batches_of(sample.sequences, config.batch_tokens))
    size = {(each.group, each.format): each.size_bytes for each in found.findings}

    def loss(names: Mapping[str, str]) -> float:
        now = open_teacher(model, cpu)
        reference = Reference.of(now, held, config.batch_tokens)
        assert reference is not None
        formats = {
            layer: found.formats[name]
            for group, name in names.items()
            if name in found.formats
            for layer in found.groups[group]
        }
        make(now, find_scheme("mixed", target), formats, batches, in_memory, screen)
        return reference.compare(now).kl_nats

    def arbitrary(seed: int) -> dict[str, str]:
        names = dict.fromkeys(found.groups, "int4")
        left = budget * found.stored_bytes - sum(size[group, "int4"] for group in names)
        for group in np.random.default_rng(seed).permutation(list(names)).tolist():
            more = size[group, "int8"] - size[group, "int4"] if (group, "int8") in size else left
            if more < left:
                names[group], left = "int8", left - more
        return names

    chosen = loss(found.choose(budget).names)
    others = [loss(arbitrary(seed)) for seed in range(ARBITRARY)]
    middle = statistics.median(others)
    return {"chosen": chosen, "arbitrary": middle, "best_arbitrary": min(others)}
