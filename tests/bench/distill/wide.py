"""A model that knows few tokens, made as wide as one that knows many.

The demo's models have a vocabulary of 1,280. Speed at a real one is measured on the same models
with further rows in embedding and projection: what is computed is the same as with a tokenizer of
that size, and the ids that were logged mean what they meant.
"""

import torch
from transformers import PreTrainedModel

VOCABULARY = 32_768
NEW_ROWS_STD = 0.02


def widen(model: PreTrainedModel, vocabulary: int) -> None:
    """Add small random rows for ids that never occur, in place; tied matrices stay tied.

    Args:
        model: Of at most that vocabulary.
        vocabulary: Tokens it knows afterwards.
    """
    known = model.config.vocab_size
    model.resize_token_embeddings(vocabulary, mean_resizing=False)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[known:].normal_(std=NEW_ROWS_STD, generator=random)
