"""The tap: a vLLM logits processor that records each tagged position's top k and changes nothing.

Loaded with ``--logits-processors capture.tap:LogitTap``; ``RETORT_SPOOL`` names the folder for
segments, ``RETORT_TAP`` holds ``TapConfig`` as JSON. A request is recorded when its
``vllm_xargs`` hold ``{"retort": "<exchange id>"}``.

vLLM has two model runners with an interface each; the adapters to them are ``capture.tap_v1`` and
``capture.tap_v2``. ``capture.recorder`` behind both knows no vLLM.
"""

from typing import TYPE_CHECKING, Any

from vllm.v1.sample.logits_processor import LogitsProcessor as V1Interface
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Interface

from capture.tap_v1 import V1Tap
from capture.tap_v2 import V2Tap

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class LogitTap(V1Interface, V2Interface):
    """The name for either runner: each refuses classes that are not of its own interface."""

    def __new__(cls, vllm_config: "VllmConfig", *runner: Any) -> "V1Tap | V2Tap":  # noqa: ANN401
        """Return the adapter that fits what the runner hands over.

        Args:
            vllm_config: The engine's.
            runner: V1: device and whether memory is pinned; V2: its request states.
        """
        return V1Tap(vllm_config) if len(runner) > 1 else V2Tap(vllm_config, *runner)
