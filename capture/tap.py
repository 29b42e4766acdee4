"""The tap: a vLLM logits processor that records each tagged position's top k and changes nothing.

Loaded with ``--logits-processors capture.tap:LogitTap``; ``RETORT_SPOOL`` names the folder for
segments, ``RETORT_TAP`` holds ``TapConfig`` as JSON. A request is recorded when its
``vllm_xargs`` hold ``{"retort": "<exchange id>"}``.

vLLM has two model runners with an interface each; the adapters to them are ``capture.tap_v1`` and
``capture.tap_v2``. ``capture.recorder`` behind both knows no vLLM.
"""

from typing import TYPE_CHECKING, Any

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as V1Interface
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2Interface

from capture.tap_v1 import V1Tap
from capture.tap_v2 import V2Tap
from capture.tapping import is_recording, tag_of

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class LogitTap(V1Interface, V2Interface):
    """The name for either runner: each refuses classes that are not of its own interface."""

    def __new__(cls, vllm_config: "VllmConfig", *runner: Any) -> V1Interface | V2Interface:  # noqa: ANN401
        """Return the adapter that fits what the runner hands over.

        Args:
            vllm_config: The engine's.
            runner: V1: device and whether memory is pinned; V2: its request states.

        Raises:
            ConfigError: If no process of the engine sees every row.
        """
        if not is_recording(vllm_config):
            return SilentTap()
        return V1Tap(vllm_config) if len(runner) > 1 else V2Tap(vllm_config, *runner)


class SilentTap(V1Interface, V2Interface):
    """Stands in for the tap where another process of the engine records.

    All of them must sample the same tokens, so this one answers as the tap would: what a request
    asks of the logits decides in which precision they are sampled from.
    """

    def __init__(self) -> None:
        """Take nothing: there is nothing to set up."""

    def is_argmax_invariant(self) -> bool:
        """False, as of the tap."""
        return False

    def update_state(self, batch_update: object) -> None:
        """Follow nothing."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:  # noqa: ARG002
        """Whether the tap records it."""
        return tag_of(sampling_params) is not None

    def apply(self, logits: torch.Tensor, *_: object) -> torch.Tensor:
        """Pass the logits on."""
        return logits
