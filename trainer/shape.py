"""Shapes of a student: their parameters, and which one loses least within a budget (pure)."""

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace

import numpy as np
from transformers import PretrainedConfig

from capture.errors import ConfigError
from trainer.config import CutConfig

WIDTH_STEP = 32  # widths are multiples of this: kernels and quantization groups ask for it
POINTS = 6  # sizes tried per dimension, evenly spaced up to the teacher's
HOPELESS_NATS = 1.0  # a dimension that alone does so much damage is not cut further


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder that a cut may change."""

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int


DIMENSIONS = frozenset(field.name for field in fields(Shape))


def shape_of(config: PretrainedConfig) -> Shape:
    """Return the shape of a model by its configuration."""
    return Shape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
    )


def group_size(config: PretrainedConfig) -> int:
    """Return how many query heads share one head of keys and values."""
    return int(config.num_attention_heads // config.num_key_value_heads)


def num_parameters(config: PretrainedConfig, shape: Shape) -> int:
    """Return the weights of a model of the given family and shape, tied ones once."""
    heads = 2 * (shape.heads + shape.heads // group_size(config))
    attention = heads * config.head_dim * shape.hidden_size
    head_norms = 2 * config.head_dim if config.model_type == "qwen3" else 0
    mlp = 3 * shape.intermediate_size * shape.hidden_size
    layer = attention + head_norms + mlp + 2 * shape.hidden_size
    embeddings = (1 if config.tie_word_embeddings else 2) * config.vocab_size * shape.hidden_size
    return int(embeddings + shape.layers * layer + shape.hidden_size)


def choose(
    config: PretrainedConfig,
    wanted: CutConfig,
    budget: int,
    damage: Callable[[Shape], float],
) -> Shape:
    """Return the shape within the budget whose dimensions together do the least damage.

    Each dimension is cut alone, in a few steps, and the damage measured; the damage of a shape
    is taken as the sum over its dimensions, interpolated between the steps.

    Args:
        config: Of the teacher.
        wanted: Sizes that are fixed; with all four fixed, nothing is measured or enforced.
        budget: Most parameters allowed.
        damage: Divergence from the teacher of a cut before training, in nats.

    Raises:
        ConfigError: If a wanted size cannot be cut from the teacher, or nothing fits.
    """
    fixed = {name: size for name, size in wanted.model_dump().items() if size is not None}
    _check(fixed, config)
    if len(fixed) == len(DIMENSIONS):
        return Shape(**fixed)
    fitting = list(_fitting(config, fixed, budget))
    if not fitting:
        raise ConfigError(
            f"[trainer.cut] is {fixed}: no student of at most {budget:,} parameters has that; "
            "give smaller sizes, leave some out, or give all four"
        )
    uncut = shape_of(config)
    uncut_damage = damage(uncut)
    curves: dict[str, dict[int, float]] = {}
    for name in sorted(DIMENSIONS - fixed.keys()):
        curve = curves[name] = {asdict(uncut)[name]: uncut_damage}
        for size in reversed(_sizes(config)[name][:-1]):
            curve[size] = damage(replace(uncut, **{name: size}))
            if curve[size] > HOPELESS_NATS:
                break
    return min(fitting, key=lambda shape: _total(curves, shape))


def _total(curves: Mapping[str, Mapping[int, float]], shape: Shape) -> float:
    """Damage of a shape; sizes below the smallest one measured are not to be had."""
    total = 0.0
    for name, curve in curves.items():
        measured = sorted(curve)
        damages = [curve[size] for size in measured]
        total += float(np.interp(asdict(shape)[name], measured, damages, left=np.inf))
    return total


def _fitting(config: PretrainedConfig, fixed: Mapping[str, int], budget: int) -> Iterator[Shape]:
    """Every combination within the budget, each with the widest MLP that fits."""
    full = shape_of(config)
    sizes = _sizes(config) | {name: [size] for name, size in fixed.items()}
    for width, layers, heads in itertools.product(
        sizes["hidden_size"], sizes["layers"], sizes["heads"]
    ):
        bare = Shape(width, 0, layers, heads)
        room = (budget - num_parameters(config, bare)) // (3 * layers * width)
        widest = min(full.intermediate_size, room // WIDTH_STEP * WIDTH_STEP)
        neurons = fixed.get("intermediate_size", widest)
        if 0 < neurons <= room and width % heads == 0:
            yield replace(bare, intermediate_size=neurons)


def _sizes(config: PretrainedConfig) -> dict[str, list[int]]:
    """Sizes to try in each dimension, ascending, the teacher's own last."""
    full = shape_of(config)
    heads = _steps(full.heads, group_size(config))
    return {
        "hidden_size": [n for n in _steps(full.hidden_size, WIDTH_STEP) if n % full.heads == 0],
        "intermediate_size": _steps(full.intermediate_size, WIDTH_STEP),
        "layers": _steps(full.layers, 1),
        "heads": [n for n in heads if full.hidden_size % n == 0],
    }


def _steps(full: int, step: int) -> list[int]:
    tried = {max(step, round(full * k / POINTS / step) * step) for k in range(1, POINTS)}
    return [*sorted(size for size in tried if size < full), full]


def _check(fixed: Mapping[str, int], config: PretrainedConfig) -> None:
    full, group = asdict(shape_of(config)), group_size(config)
    for name, size in fixed.items():
        if size > full[name]:
            raise ConfigError(
                f"[trainer.cut] {name} is {size}, expected at most the teacher's ({full[name]})"
            )
    if fixed.get("heads", group) % group:
        raise ConfigError(
            f"[trainer.cut] heads is {fixed['heads']}, expected a multiple of {group}: "
            "so many share one head of keys and values in the teacher"
        )
    if fixed.get("hidden_size", 0) % fixed.get("heads", 1):
        raise ConfigError(
            f"[trainer.cut] hidden_size is {fixed['hidden_size']}, expected a multiple of heads "
            f"({fixed['heads']}): Llama models ask for it"
        )
