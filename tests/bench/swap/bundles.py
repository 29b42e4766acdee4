"""Bundles whose engines are good or bad in a known way, before a fake vLLM.

The thing under test is the gateway: what it makes of each is what counts. A real vLLM meets the
same faults in ``tests/integration/test_bad_bundles.py``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.bundle import Lineage, publish
from tests.support import fake_vllm

ANSWER = " ".join(f"word{number}" for number in range(10))
PACE_SECONDS = 0.1
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@dataclass(frozen=True, slots=True)
class Kind:
    """A way in which a bundle is good or bad.

    Attributes:
        reasons: What a gateway may say of it, one of them; none: it has to go live.
        behaviour: What its engine does.
        template: Its chat template.
    """

    reasons: tuple[str, ...] = ()
    behaviour: Mapping[str, Any] = field(default_factory=dict)
    template: str = TEMPLATE


GOOD = "good"
KINDS = {
    GOOD: Kind(),
    "crashes on load": Kind(("ended before it was ready",), {"exits": True}),
    "slow": Kind(("slow_ttft", "slow_duration"), {"pace_seconds": 5 * PACE_SECONDS}),
    "gibberish": Kind(("agreement",), {"answer": "!" * 40}),
    "NaN weights": Kind(("logits are no numbers",), {"is_nan": True}),
    "wrong chat template": Kind(("chat template",), template=TEMPLATE + "<|other|>"),
    "broken on a rare slice": Kind(("slice_agreement",), {"rare_answer": "!" * 40}),
}
BAD = [name for name in KINDS if name != GOOD]


def model(folder: Path, name: str, kind: Kind) -> Path:
    """A folder that passes for a model; its engine's answers carry the name as their id."""
    behaviour = {"name": name, "answer": ANSWER, "pace_seconds": PACE_SECONDS, **kind.behaviour}
    fake_vllm.model(folder, **behaviour)
    (folder / "chat_template.jinja").write_text(kind.template)
    return folder


def bundle(home: Path, name: str, kind: Kind) -> Path:
    """A published bundle."""
    draft = model(home / f"{name}.draft", name, kind)
    publish(draft, home / name, lineage=Lineage(), parameters=1, quality={})
    return home / name
