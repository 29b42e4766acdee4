"""How much memory there is for what has to be in it as a whole."""

from collections.abc import Mapping
from pathlib import Path

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from capture.host import this_host
from quant.errors import CompressionError
from quant.schemes import Scheme

# Of version 1 and 2 of control groups: hierarchy, limit, and what of its usage is no cache.
GROUPS = (
    ("memory", Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "total_rss"),
    ("", Path("/sys/fs/cgroup"), "memory.max", "anon"),
)

WHOLE = ("fp8", "nvfp4", "mxfp4", "gguf")  # methods whose result is measured as a model in float32


def check_memory(
    scheme: Scheme, model: PreTrainedModel, layers: Mapping[str, nn.Linear], *, is_tried: bool
) -> None:
    """See before any work that what has to be in memory as a whole will fit into it.

    That is the model in float32 for schemes that are not made layer by layer, and the bundle's
    weights where the engine is to load them here.

    Raises:
        CompressionError: If it does not.
    """
    inside = sum(layer.weight.numel() for layer in layers.values())
    total = sum(parameter.numel() for parameter in model.parameters())
    needed, free = 4 * total, available_bytes()
    if scheme.method in WHOLE and needed > free:
        raise CompressionError(
            f"{scheme.name} needs the whole model in memory, in float32: {_gb(needed)}, {_gb(free)}"
            " are free; int8, int8-weight, int4-rtn, int4-gptq, int4-awq and mixed do not"
        )
    if this_host() == "cuda":
        free = torch.cuda.mem_get_info()[0]
    outside = (total - inside) * model.config.dtype.itemsize
    needed = inside * scheme.weight_bits // 8 + outside
    if is_tried and scheme.engine == "vLLM" and needed > free:
        raise CompressionError(
            f"the bundle's weights will take {_gb(needed)} and vLLM has {_gb(free)} here, so it "
            "cannot be tried: choose a scheme of fewer bits, or --no-check to make it untried "
            "(the bundle says so: engine_checked 0)"
        )


def available_bytes() -> int:
    """Return what this process and its children may still allocate: of the machine, of its group.

    What caches files is not counted as used: the system takes it back when it needs to.
    """
    free = [int(psutil.virtual_memory().available)]
    text = Path("/proc/self/cgroup").read_text(encoding="utf-8")
    for line in text.splitlines():
        _, controllers, name = line.split(":", 2)
        for controller, root, limit, used in GROUPS:
            if controller in controllers.split(","):
                free += free_in(root, name, limit, used)
    return max(0, min(free))


def free_in(root: Path, name: str, limit: str, used: str) -> list[int]:
    """Of a group and of those that it is in; a container may not see the names of its own."""
    folder = root / name.lstrip("/")
    inner = [folder, *folder.parents]
    folders = [each for each in inner if each.is_relative_to(root) and (each / limit).exists()]
    free = []
    for each in folders:
        most = (each / limit).read_text(encoding="utf-8").strip()
        if most != "max":
            stat = (each / "memory.stat").read_text(encoding="utf-8").split()
            free.append(int(most) - int(stat[stat.index(used) + 1]))
    return free


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB"
