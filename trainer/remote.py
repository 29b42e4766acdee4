"""Answers and their distributions from engines that serve a student or a teacher.

vLLM's OpenAI API: prompts as token ids, and two fields of its own, ``return_token_ids`` and
``prompt_logprobs``; the latter are natural logprobs at temperature 1 (its ``raw_logprobs``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openai import OpenAI
from openai.types import CompletionChoice

from capture.scores import Scores, prompt_scores
from capture.wire import TOP
from trainer import scoring
from trainer.answering import Answer, Sampling, Tokens
from trainer.endpoint import endpoint_errors
from trainer.errors import EndpointError

LIMITS = scoring.LIMITS._replace(k_max=TOP)
STRANGE = (AttributeError, IndexError, KeyError, TypeError, ValueError)  # of JSON as it comes


@dataclass(frozen=True, slots=True)
class Engine:
    """One model behind an address."""

    client: OpenAI
    url: str
    model: str

    def answers(self, sampling: Sampling, prompts: Sequence[Tokens]) -> list[Answer]:
        """Let the model answer some prompts at once.

        Raises:
            EndpointError: If it fails, or does not give token ids.
        """
        asked = [prompt.tolist() for prompt in prompts]
        found = self._complete(
            asked,
            max_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            extra={"return_token_ids": True, "top_p": 1.0, "top_k": 0, "repetition_penalty": 1.0},
        )
        try:
            return [
                Answer(prompt, np.asarray(_extra(choice)["token_ids"], np.int32), _end(choice))
                for prompt, choice in zip(prompts, found, strict=True)
            ]
        except STRANGE as error:
            raise EndpointError(
                f"{self.url} gives no token_ids: expected a vLLM that knows return_token_ids"
            ) from error

    def scores(self, answers: Sequence[Answer]) -> list[Scores]:
        """Let the model score the tokens of some answers at once.

        Raises:
            EndpointError: If it fails, or does not give ``prompt_logprobs``.
        """
        asked = [
            [*answer.prompt_ids.tolist(), *answer.completion_ids.tolist()] for answer in answers
        ]
        found = self._complete(asked, max_tokens=1, temperature=0.0, extra={"prompt_logprobs": TOP})
        try:
            return [
                prompt_scores(_extra(choice)["prompt_logprobs"][len(answer.prompt_ids) :], LIMITS)
                for answer, choice in zip(answers, found, strict=True)
            ]
        except STRANGE as error:
            raise EndpointError(
                f"{self.url} gives no prompt_logprobs: expected vLLM without --max-logprobs "
                f"below {TOP}"
            ) from error

    def _complete(
        self,
        prompts: list[list[int]],
        *,
        max_tokens: int,
        temperature: float,
        extra: dict[str, Any],
    ) -> list[CompletionChoice]:
        with endpoint_errors(self.url):
            answer = self.client.completions.create(
                model=self.model,
                prompt=prompts,
                max_tokens=max_tokens,
                temperature=temperature,
                extra_body=extra,
            )
        return sorted(answer.choices, key=lambda choice: choice.index)


def _extra(choice: CompletionChoice) -> dict[str, Any]:
    """Fields that OpenAI's API does not have."""
    return choice.model_extra or {}


def _end(choice: CompletionChoice) -> str:
    return "length" if choice.finish_reason == "length" else "stop"
