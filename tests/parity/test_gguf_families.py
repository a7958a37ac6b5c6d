"""GGUF files of every architecture, made of models of transformers with the tensor names of the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_converters_gguf import add_byte_level
from parity.test_converters_hf import FALCON, IDS, save_model
from parity.test_families import ENDS, MODELS

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.architectures import ARCHITECTURES, MODEL_TYPES
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError

gguf = pytest.importorskip("gguf")
Change = Callable[[str, torch.Tensor, Any], torch.Tensor]
"""(name in transformers, tensor, configuration) -> the tensor as llama.cpp's converter stores it."""


def interleaved(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    size = config.hidden_size // config.num_attention_heads
    return tensor.view(-1, 2, size // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)


def one_after_the_other(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Groups of queries, a key and a value -> all queries, all keys, all values."""
    if "query_key_value" not in name:
        return tensor
    size = config.hidden_size // config.num_attention_heads
    groups = config.num_kv_heads if config.model_type == "falcon" else config.num_attention_heads
    if getattr(config, "multi_query", False) and not config.new_decoder_architecture:
        groups = 1
    rows = tensor.reshape(groups, -1, size, *tensor.shape[1:])
    return torch.cat([rows[:, :-2].flatten(0, 2), rows[:, -2].flatten(0, 1), rows[:, -1].flatten(0, 1)])


def transposed(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor.t() if ".c_" in name and tensor.dim() == 2 else tensor


def one_more(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor + 1 if name.endswith("norm.weight") else tensor


def same(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    return tensor


GROUPED_FALCON = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
CASES: dict[str, tuple[str, str, dict[str, Any], Change]] = {
    "llama": ("llama", "llama", MODELS["llama"][1], interleaved),
    "mistral": ("llama", "mistral", {**MODELS["llama"][1], "sliding_window": None}, interleaved),
    "qwen2": ("qwen2", "qwen2", {**MODELS["llama"][1], "tie_word_embeddings": True}, same),
    "qwen3": ("qwen3", "qwen3", MODELS["qwen3"][1], same),
    "gemma": ("gemma", "gemma", MODELS["gemma"][1], one_more),
    "phi2": ("phi2", "phi", MODELS["phi"][1], same),
    "phi3": ("phi3", "phi3", MODELS["phi3 grouped, window, part"][1], same),
    "gptneox": ("gptneox", "gpt_neox", MODELS["gpt_neox"][1], one_after_the_other),
    "gptneox sequential": ("gptneox", "gpt_neox", MODELS["gpt_neox sequential"][1], one_after_the_other),
    "falcon 7B": ("falcon", "falcon", FALCON, one_after_the_other),
    "falcon 40B": ("falcon", "falcon", GROUPED_FALCON, one_after_the_other),
    "falcon 11B": ("falcon", "falcon", {**GROUPED_FALCON, "num_ln_in_parallel_attn": 1}, one_after_the_other),
    "stablelm": ("stablelm", "stablelm", MODELS["stablelm"][1], same),
    "stablelm parallel": ("stablelm", "stablelm", MODELS["stablelm parallel"][1], same),
    "starcoder2": ("starcoder2", "starcoder2", MODELS["starcoder2"][1], same),
    "starcoder": ("starcoder", "gpt_bigcode", MODELS["gpt_bigcode"][1], same),
    "gpt2": ("gpt2", "gpt2", MODELS["gpt2"][1], transposed),
    "mpt": ("mpt", "mpt", MODELS["mpt"][1], same),
}


def write_gguf(file: Path, architecture: str, model: Any, change: Change) -> None:
    """Metadata and tensors of a model of transformers."""
    config = model.config
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    writer = gguf.GGUFWriter(file, architecture)
    add_byte_level(writer, "gpt-2")
    writer.add_block_count(layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or config.max_seq_len)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(model.state_dict()[_down(model)].numel() // config.hidden_size)
    writer.add_head_count(heads)
    writer.add_head_count_kv(_kv_heads(config))
    epsilon = next(value for key, value in config.to_dict().items() if key.endswith(("_eps", "_epsilon")))
    if architecture in ("llama", "qwen2", "qwen3", "gemma", "phi3"):
        writer.add_layer_norm_rms_eps(epsilon)
    else:
        writer.add_layer_norm_eps(epsilon)
    if getattr(config, "head_dim", None) is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = getattr(config, "rope_parameters", None)
    if rope:
        size = getattr(config, "head_dim", None) or config.hidden_size // heads
        writer.add_rope_freq_base(rope["rope_theta"])
        writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if architecture in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if architecture == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "mpt":
        writer.add_max_alibi_bias(8.0)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, architecture.upper()), layers)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            theirs = names.get_name(name, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(theirs, change(name, tensor, config).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _down(model: Any) -> str:
    ends = ("down_proj.weight", "mlp.c_proj.weight", "dense_4h_to_h.weight", "fc2.weight")
    return next(name for name in model.state_dict() if name.endswith(ends))


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    found = [getattr(config, key, None) for key in ("num_key_value_heads", "num_kv_heads", "num_attention_heads")]
    return int(next(number for number in found if number))


def test_every_architecture_is_here() -> None:
    assert set(MODEL_TYPES) == set(ARCHITECTURES)
    found = {(architecture, kind) for architecture, kind, *_ in CASES.values()}
    assert found == {(architecture, kind) for architecture, kinds in MODEL_TYPES.items() for kind in kinds}


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    architecture, kind, settings, change = CASES[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "model.gguf", architecture, theirs, change)
    convert(tmp_path / "model.gguf", tmp_path / "ours")
    expected = theirs(IDS).logits
    assert expected.std() > 0.1
    assert (load_model(tmp_path / "ours")(IDS) - expected).abs().max() <= 1e-5
    hf = convert(tmp_path / "hf", tmp_path / "from_hf", tokenizer_model="none")
    stored, other = (Checkpoint.open(one).config.model for one in (tmp_path / "ours", hf))
    assert stored.model_copy(update={"max_position": other.max_position}) == other


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"one of llama, .*, but is 'mamba'"):
        convert(tmp_path / "mamba.gguf", tmp_path / "ours")
