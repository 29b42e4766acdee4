"""Layers that the engine computes as one, which therefore have one format."""

from collections.abc import Iterable

# vLLM multiplies these at once, by the names that its models give the result.
FUSED = {
    "q_proj": "qkv_proj",
    "k_proj": "qkv_proj",
    "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj",
    "up_proj": "gate_up_proj",
}

Groups = dict[str, tuple[str, ...]]


def fused_groups(names: Iterable[str]) -> Groups:
    """Return the names of each group's layers by the group's name, in the order given."""
    groups: dict[str, list[str]] = {}
    for name in names:
        owner, dot, leaf = name.rpartition(".")
        groups.setdefault(f"{owner}{dot}{FUSED.get(leaf, leaf)}", []).append(name)
    return {name: tuple(members) for name, members in groups.items()}
