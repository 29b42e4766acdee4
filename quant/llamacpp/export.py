"""A model in transformers as GGUF, and back: names, shapes and the order of rotary channels."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from quant.errors import CompressionError
from quant.llamacpp.extra import ARCHITECTURES
from quant.llamacpp.vocabulary import write_vocabulary
from trainer.student import open_trainable

BLOCK, WIDE_BLOCK = 32, 256
UNQUANTIZED = (
    gguf.GGMLQuantizationType.F32,
    gguf.GGMLQuantizationType.F16,
    gguf.GGMLQuantizationType.BF16,
)
ROTATED = ("attn_q", "attn_k")


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    folder: Path,
    pre: str,
    advance: Callable[[], None] | None = None,
) -> None:
    """Write a model in float32.

    Args:
        path: File to write.
        model: Of an architecture in ``ARCHITECTURES``.
        folder: Holds its tokenizer and chat template.
        pre: Name of the pre-tokenizer.
        advance: Called after each tensor; None writes the vocabulary without any tensor.

    Raises:
        CompressionError: If the model has a tensor that GGUF has no name for.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, ARCHITECTURES[config.model_type])
    _describe(writer, config)
    write_vocabulary(writer, folder, config.vocab_size, pre)
    if advance is not None:
        for name, tensor in _named(model):
            writer.add_tensor(name, tensor.float().numpy())
            advance()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, folder: Path) -> tuple[PreTrainedModel, dict[str, int]]:
    """Load what a file holds, and compute with it as llama.cpp does, in float32.

    llama.cpp multiplies integers: it rounds the inputs of a quantized layer to 8 bits too, in
    blocks of 256 channels for its K formats and of 32 for the others. So does this model.

    Args:
        path: File that llama.cpp made of one of ``write_gguf``.
        folder: The model that it was made of.

    Returns:
        The model, and the bytes that each tensor takes, by its name in transformers.

    Raises:
        CompressionError: If the file lacks a tensor of the model.
    """
    model = open_trainable(folder, torch.device("cpu"))
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    sizes: dict[str, int] = {}
    with torch.no_grad():
        for name, ours in _parameters(model):
            theirs = _gguf_name(model.config, name)
            if theirs not in stored:
                raise CompressionError(f"{path}: llama.cpp left out {theirs}, expected {name}")
            tensor = stored[theirs]
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            flat = torch.from_numpy(values.copy()).reshape(ours.shape)
            ours.copy_(_interleaved(flat, theirs, model.config, inverse=True))
            sizes[name] = int(tensor.n_bytes)
    kinds = {name: tensor.tensor_type for name, tensor in stored.items()}
    _round_inputs(model, kinds)
    return model, sizes


def _round_inputs(model: PreTrainedModel, kinds: dict[str, gguf.GGMLQuantizationType]) -> None:
    """Let quantized layers round what they are given; a tied head has the embedding's format."""
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        kind = kinds.get(_gguf_name(model.config, f"{name}.weight"), kinds["token_embd.weight"])
        if kind not in UNQUANTIZED:
            block = WIDE_BLOCK if kind.name.endswith("_K") else BLOCK
            layer.register_forward_pre_hook(partial(_rounding, block))


def _rounding(block: int, _layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Round a layer's input to 127 steps either side of zero in each block of channels.

    Source:
        ggml's reference quantizers of Q8_0, whose step is stored in float16, and of Q8_K.
    """
    blocks = inputs[0].reshape(*inputs[0].shape[:-1], -1, block)
    step = blocks.abs().amax(dim=-1, keepdim=True) / 127
    rounded = (blocks / step.clamp_min(torch.finfo(step.dtype).tiny)).round()
    stored = step.half().to(step.dtype) if block == BLOCK else step
    return ((rounded * stored).flatten(-2),)


def _describe(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)


def _named(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in _parameters(model):
        theirs = _gguf_name(model.config, name)
        yield theirs, _interleaved(tensor.detach(), theirs, model.config, inverse=False)


def _parameters(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Weights once each: a head that is the embedding is not stored again."""
    yield from model.named_parameters(remove_duplicate=True)


def _gguf_name(config: PretrainedConfig, name: str) -> str:
    kind = next(
        number
        for number, known in gguf.MODEL_ARCH_NAMES.items()
        if known == ARCHITECTURES[config.model_type]
    )
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise CompressionError(f"GGUF has no name for {name} of a {config.model_type}")
    return str(found)


def _interleaved(tensor: Tensor, name: str, config: PretrainedConfig, *, inverse: bool) -> Tensor:
    """Reorder the rows of a query or key projection for llama.cpp's Llama, or back.

    transformers rotates channel i of a head together with channel i + half, llama.cpp's Llama
    together with its neighbour; its Qwen does as transformers.

    Args:
        tensor: Weights ``(heads * width, I)``, or a bias ``(heads * width,)``.
        name: In GGUF.
        config: Of the model.
        inverse: From llama.cpp's order to that of transformers.
    """
    part = name.split(".")[-2]
    if ARCHITECTURES[config.model_type] != "llama" or part not in ROTATED:
        return tensor
    heads = config.num_attention_heads if part == "attn_q" else config.num_key_value_heads
    half = len(tensor) // heads // 2
    shape = (heads, half, 2, -1) if inverse else (heads, 2, half, -1)
    return tensor.reshape(shape).transpose(1, 2).reshape(tensor.shape)
