"""A tiny model behind the part of vLLM's OpenAI API that rollouts use, in a thread of the test."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tests.support.json_server import Asked, Reply, json_server, models, refusal

END = 1


@dataclass
class ModelServer:
    """Answers greedily; ``status`` makes it refuse, ``is_plain`` leaves out what only vLLM has."""

    folder: Path
    names: list[str] = field(default_factory=lambda: ["model"])
    status: int = 200
    is_plain: bool = False
    bodies: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32)

    @torch.inference_mode()
    def completions(self, body: dict[str, Any]) -> dict[str, Any]:
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            new = self._continued(prompt, body["max_tokens"])
            choice: dict[str, Any] = {"index": index, "text": "", "logprobs": None}
            choice["finish_reason"] = "stop" if new[-1] == END else "length"
            if not self.is_plain:
                choice["token_ids"] = new
                choice["prompt_logprobs"] = self._scored(prompt, body.get("prompt_logprobs"))
            choices.append(choice)
        # Another order than asked: a client has to look at the index.
        return {"id": "c", "object": "text_completion", "model": "m", "choices": choices[::-1]}

    def _continued(self, prompt: list[int], most: int) -> list[int]:
        ids = list(prompt)
        while len(ids) < len(prompt) + most and (ids == prompt or ids[-1] != END):
            ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    def _scored(self, prompt: list[int], top: int | None) -> list[Any] | None:
        """As vLLM has it: the token itself first, whatever its rank, then the likeliest."""
        if top is None:
            return None
        logprobs = self.model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        found: list[Any] = [None]
        for token, row in zip(prompt[1:], logprobs, strict=False):
            ids = [token, *(int(i) for i in row.topk(top).indices)]
            found.append({str(i): {"logprob": float(row[i]), "decoded_token": "x"} for i in ids})
        return found


@contextmanager
def model_server(server: ModelServer) -> Iterator[str]:
    """Serve it on a free loopback port; gives its address."""

    def respond(asked: Asked) -> Reply:
        if asked.body is None:
            return models(server.names)
        server.bodies.append(asked.body)
        if server.status != 200:
            return refusal(server.status)
        return Reply(server.completions(asked.body))

    with json_server(respond) as url:
        yield url
