"""GGUF files of every architecture, made of models of transformers with the tensor names of the `gguf` package."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.test_converters_gguf import add_byte_level
from parity.test_converters_hf import FALCON, IDS, save_model
from parity.test_families import ENDS, GROUPED, MODELS, YARN
from safetensors.torch import load_file

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.architectures import ARCHITECTURES, MODEL_TYPES
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import UnsupportedError

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")
FAMILY_NAMES = {family.model_type for family in FAMILIES}
Change = Callable[[str, torch.Tensor, Any], torch.Tensor]
"""(name in transformers, tensor, configuration) -> the tensor as llama.cpp's converter stores it."""
Tensors = dict[str, torch.Tensor]
Arrange = Callable[[Tensors], Tensors]
"""Tensors by their names in a GGUF file -> the same in another layout."""


def interleaved(name: str, tensor: torch.Tensor, config: Any) -> torch.Tensor:
    if "q_proj" not in name and "k_proj" not in name:
        return tensor
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
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


YARN_TRUNCATED = {
    "use_sliding_window": False,
    "rope_parameters": {**YARN, "beta_fast": 2.0, "beta_slow": 0.5, "attention_factor": 1.3},
}
SCALED_BY_TYPE = {
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
    }
}
GROUPS, ONE_GROUP = (
    MODELS[f"deepseek_{name}"][1] for name in ("v2 groups, yarn, no narrow queries", "v3 yarn, one group")
)
DEEPSEEK_YARN = {
    "attention_bias": False,
    "rope_parameters": {**YARN, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 0.7, "mscale_all_dim": 0.7},
}
GROUPED_FALCON = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
CASES: dict[str, tuple[str, str, dict[str, Any], Change]] = {
    "llama": ("llama", "llama", MODELS["llama"][1], interleaved),
    "mistral": ("llama", "mistral", {**MODELS["llama"][1], "sliding_window": None}, interleaved),
    "qwen2": ("qwen2", "qwen2", {**MODELS["llama"][1], "tie_word_embeddings": True}, same),
    "qwen3": ("qwen3", "qwen3", MODELS["qwen3"][1], same),
    "gemma": ("gemma", "gemma", MODELS["gemma"][1], one_more),
    "phi2": ("phi2", "phi", MODELS["phi"][1], same),
    "phi3": ("phi3", "phi3", MODELS["phi3 grouped, window, part"][1], same),
    "phi3 longrope": ("phi3", "phi3", {**MODELS["phi3 longrope"][1], "sliding_window": 64}, same),
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
    "bloom": ("bloom", "bloom", MODELS["bloom"][1], one_after_the_other),
    "gemma2": ("gemma2", "gemma2", {**MODELS["gemma2 all capped"][1], "num_hidden_layers": 3}, one_more),
    "gemma3": ("gemma3", "gemma3_text", {**MODELS["gemma3_text"][1], "num_hidden_layers": 7}, one_more),
    "gemma3 scaled": ("gemma3", "gemma3_text", {**MODELS["gemma3_text"][1], **SCALED_BY_TYPE}, one_more),
    "granite": ("granite", "granite", MODELS["granite"][1], interleaved),
    "granite biases": ("granite", "granite", MODELS["granite biases, tied"][1], interleaved),
    "smollm3": ("smollm3", "smollm3", {**MODELS["smollm3"][1], "num_hidden_layers": 5}, interleaved),
    "olmo2": ("olmo2", "olmo2", MODELS["olmo2"][1], same),
    "command-r": ("command-r", "cohere", MODELS["cohere"][1], same),
    "cohere2": ("cohere2", "cohere2", {**MODELS["cohere2"][1], "num_hidden_layers": 5}, same),
    "mixtral": ("llama", "mixtral", MODELS["mixtral"][1], interleaved),
    "qwen2moe": ("qwen2moe", "qwen2_moe", MODELS["qwen2_moe"][1], same),
    "qwen3moe": ("qwen3moe", "qwen3_moe", MODELS["qwen3_moe"][1], same),
    "olmoe": ("olmoe", "olmoe", MODELS["olmoe"][1], same),
    "nemotron": ("nemotron", "nemotron", MODELS["nemotron"][1], one_more),
    "arcee": ("arcee", "arcee", MODELS["arcee"][1], interleaved),
    "arcee yarn": ("arcee", "arcee", {**MODELS["arcee"][1], "rope_parameters": YARN}, interleaved),
    "qwen2 yarn": ("qwen2", "qwen2", MODELS["qwen2 yarn, all settings"][1] | YARN_TRUNCATED, same),
    "ernie4_5": ("ernie4_5", "ernie4_5", MODELS["ernie4_5"][1], same),
    "chatglm": ("chatglm", "glm", MODELS["glm"][1], same),
    "deepseek2": ("deepseek2", "deepseek_v2", MODELS["deepseek_v2"][1], same),
    "deepseek2 groups, yarn": ("deepseek2", "deepseek_v2", {**GROUPS, **DEEPSEEK_YARN}, same),
    "deepseek2 of V3": ("deepseek2", "deepseek_v3", MODELS["deepseek_v3"][1], same),
    "deepseek2 of V3, yarn": ("deepseek2", "deepseek_v3", {**ONE_GROUP, **DEEPSEEK_YARN}, same),
    "gpt-oss": ("gpt-oss", "gpt_oss", MODELS["gpt_oss"][1], same),
    "glm4": ("glm4", "glm4", {**GROUPED, "head_dim": 16, "attention_bias": True}, same),
}


NUMBERS = {
    "logit_scale": "add_logit_scale",
    "logits_scaling": "add_logit_scale",
    "attention_multiplier": "add_attention_scale",
    "embedding_multiplier": "add_embedding_scale",
    "residual_multiplier": "add_residual_scale",
    "attn_logit_softcapping": "add_attn_logit_softcapping",
    "final_logit_softcapping": "add_final_logit_softcapping",
    "num_experts": "add_expert_count",
    "num_local_experts": "add_expert_count",
    "num_experts_per_tok": "add_expert_used_count",
    "moe_intermediate_size": "add_expert_feed_forward_length",
    "shared_expert_intermediate_size": "add_expert_shared_feed_forward_length",
}
"""Keys of `config.json`, and the methods of `GGUFWriter` for the same numbers."""
WINDOWS = ("phi3", "gemma2", "gemma3", "cohere2", "gpt-oss")
"""Architectures with a key of the sliding window."""


def write_gguf(
    file: Path,
    architecture: str,
    directory: Path,
    change: Change,
    *,
    arrange: Arrange = lambda tensors: tensors,
    keys: Mapping[str, Any] | None = None,
) -> None:
    """Metadata and tensors of a model of transformers in `directory`, as llama.cpp's converter writes them, and further
    keys."""
    config = transformers.AutoConfig.from_pretrained(directory)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    tensors = load_file(directory / "model.safetensors")
    writer = gguf.GGUFWriter(file, architecture)
    add_byte_level(writer, "gpt-2")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", 64))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(getattr(config, "intermediate_size", None) or _down_width(tensors))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(_kv_heads(config))
    epsilon = next(value for key, value in config.to_dict().items() if key.endswith(("_eps", "_epsilon")))
    if hasattr(config, "rms_norm_eps") or architecture == "nemotron":
        writer.add_layer_norm_rms_eps(epsilon)
    if not hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_eps(epsilon)
    if getattr(config, "head_dim", None) is not None:
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    add_rope(writer, config)
    for key, method in NUMBERS.items():
        if getattr(config, key, None) is not None:
            getattr(writer, method)(getattr(config, key))
    for key, value in {**(deepseek_keys(config) if architecture == "deepseek2" else {}), **(keys or {})}.items():
        writer.add_key_value(f"{architecture}.{key}", value, gguf.GGUFValueType.get_type(value))
    if architecture == "gpt-oss":
        writer.add_expert_feed_forward_length(config.intermediate_size)
    if architecture in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config.use_parallel_residual)
    if architecture in WINDOWS:
        writer.add_sliding_window(config.sliding_window or 0)
    if architecture == "mpt":
        writer.add_max_alibi_bias(8.0)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    found = {}
    for name, tensor in with_stacked_experts(tensors, config).items():
        ends = (".weight", ".bias")
        theirs = names.get_name(name, ends) or names.get_name(converted(name), ends)
        found[theirs] = change(name, tensor, config)
    for name, tensor in arrange(found).items():
        writer.add_tensor(name, tensor.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def converted(name: str) -> str:
    """A name that the converter changes before it looks for it."""
    return name.removeprefix("transformer.").replace("e_score_correction_bias", "e_score_correction.bias")


def add_rope(writer: Any, config: Any) -> None:
    rope = getattr(config, "rope_parameters", None)
    if not rope:
        return
    rope, local = rope.get("full_attention", rope), rope.get("sliding_attention")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    if local:
        writer.add_rope_freq_base_swa(local["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        original = rope["original_max_position_embeddings"]
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(
            math.sqrt(1 + math.log(config.max_position_embeddings / original) / math.log(original))
        )
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", torch.tensor(rope[f"{name}_factor"]).numpy())
    for key, method in (
        ("attention_factor", "add_rope_scaling_yarn_attn_factor"),
        ("beta_fast", "add_rope_scaling_yarn_beta_fast"),
        ("beta_slow", "add_rope_scaling_yarn_beta_slow"),
    ):
        if rope.get(key) is not None:
            getattr(writer, method)(rope[key])


def deepseek_keys(config: Any) -> dict[str, Any]:
    """The keys of latent attention and of experts in groups."""
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_count": config.n_routed_experts,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": float(config.routed_scaling_factor),
        "rope.dimension_count": config.qk_rope_head_dim,
        "expert_gating_func": 2 if config.model_type == "deepseek_v3" else 1,
    }
    if config.q_lora_rank is not None:
        keys["attention.q_lora_rank"] = config.q_lora_rank
    if config.n_group is not None:
        keys |= {"expert_group_count": config.n_group, "expert_group_used_count": config.topk_group}
    if getattr(config, "norm_topk_prob", False):
        keys["expert_weights_norm"] = True
    if config.rope_parameters.get("mscale_all_dim"):
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * config.rope_parameters["mscale_all_dim"]
    return keys


def of_deepseek(name: str, tensor: torch.Tensor, config: Any) -> Tensors:
    """The matrix that makes keys and values of the narrow vector: one for each, that of keys transposed."""
    heads = tensor.unflatten(0, (config.num_attention_heads, -1))
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return {name.replace("kv_b", "k_b"): keys.transpose(1, 2), name.replace("kv_b", "v_b"): values}


def with_stacked_experts(tensors: Tensors, config: Any) -> Tensors:
    """The tensors, where those of all experts of a layer are one."""
    experts: dict[str, list[tuple[int, torch.Tensor]]] = {}
    others: Tensors = {}
    for name, tensor in tensors.items():
        if name.endswith("sinks") or "mlp.experts.gate_up_proj" in name or "mlp.experts.down_proj" in name:
            others |= of_gpt_oss(name, tensor)
        elif "kv_b_proj" in name:
            others |= of_deepseek(name, tensor, config)
        elif (match := re.fullmatch(r"(.*\.experts)\.(\d+)\.(.*)", name)) is None:
            others[name] = tensor
        else:
            stem = match[1].replace("model.layers", "layers").replace("block_sparse_moe", "feed_forward")
            stem = stem if "feed_forward" in stem else match[1]
            experts.setdefault(f"{stem}.{match[3]}", []).append((int(match[2]), tensor))
    return others | {
        name: torch.stack([tensor for _, tensor in sorted(found, key=lambda pair: pair[0])])
        for name, found in experts.items()
    }


def of_gpt_oss(name: str, tensor: torch.Tensor) -> Tensors:
    """The experts of gpt-oss: each matrix by itself, and not transposed."""
    if name.endswith("sinks"):
        return {f"{name}.weight": tensor}
    stem, kind = (name.removesuffix("_bias"), "bias") if name.endswith("_bias") else (name, "weight")
    tensor = tensor if kind == "bias" else tensor.transpose(1, 2)
    if "gate_up" not in name:
        return {f"{stem}.{kind}": tensor}
    gate, up = (stem.replace("gate_up", part) for part in ("gate", "up"))
    return {f"{gate}.{kind}": tensor[:, ::2], f"{up}.{kind}": tensor[:, 1::2]}


def _down_width(tensors: Tensors) -> int:
    """The width of the feed-forward layer of GPT-2 and its like, which have no key for it."""
    ends = ("mlp.c_proj.weight", "down_proj.weight", "dense_4h_to_h.weight")
    down = next(tensor for name, tensor in tensors.items() if name.endswith(ends))
    return max(down.shape)


def _kv_heads(config: Any) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    found = [getattr(config, key, None) for key in ("num_key_value_heads", "num_kv_heads", "num_attention_heads")]
    return int(next(number for number in found if number))


def test_every_architecture_is_here() -> None:
    assert set(MODEL_TYPES) == set(ARCHITECTURES)
    found = {(architecture, kind) for architecture, kind, *_ in CASES.values() if kind in FAMILY_NAMES}
    assert found == {(name, kind) for name, kinds in MODEL_TYPES.items() for kind in kinds if name != "t5"}
    assert {architecture for architecture, *_ in CASES.values()} == set(ARCHITECTURES) - {"t5"}  # test_gguf_t5.py


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_logits_are_those_of_transformers(tmp_path: Path, name: str) -> None:
    architecture, kind, settings, change = CASES[name]
    theirs = save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "model.gguf", architecture, tmp_path / "hf", change)
    convert(tmp_path / "model.gguf", tmp_path / "ours")
    expected = theirs(IDS).logits
    assert expected.std() > 0.1
    assert (load_model(tmp_path / "ours")(IDS) - expected).abs().max() <= 1e-5
    if kind not in FAMILY_NAMES:
        return
    hf = convert(tmp_path / "hf", tmp_path / "from_hf", tokenizer_model="none")
    stored, other = (Checkpoint.open(one).config.model for one in (tmp_path / "ours", hf))
    assert stored.model_copy(update={"max_position": other.max_position}) == other


def each_by_itself(tensors: Tensors) -> Tensors:
    """The experts of files from before March 2024."""
    stacks = {name: tensor for name, tensor in tensors.items() if "_exps" in name}
    found = {name: tensor for name, tensor in tensors.items() if "_exps" not in name}
    for name, stack in stacks.items():
        found |= {name.replace("_exps", f".{number}"): tensor for number, tensor in enumerate(stack)}
    return found


def gate_and_up_in_one(tensors: Tensors) -> Tensors:
    """As llama.cpp's converter writes them with --fuse-gate-up-exps."""
    found = {name: tensor for name, tensor in tensors.items() if "gate_exps" not in name and "up_exps" not in name}
    for name in (name for name in tensors if "gate_exps" in name):
        pair = [tensors[name], tensors[name.replace("gate", "up")]]
        found[name.replace("gate_exps", "gate_up_exps")] = torch.cat(pair, dim=1)
    return found


@pytest.mark.parametrize("arrange", [each_by_itself, gate_and_up_in_one])
def test_other_layouts_of_experts(tmp_path: Path, arrange: Arrange) -> None:
    architecture, kind, settings, change = CASES["mixtral"]
    save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    fingerprints = []
    for name, one in (("usual", lambda tensors: tensors), ("other", arrange)):
        write_gguf(tmp_path / f"{name}.gguf", architecture, tmp_path / "hf", change, arrange=one)
        fingerprints.append(Checkpoint.open(convert(tmp_path / f"{name}.gguf", tmp_path / name)).fingerprint)
    assert fingerprints[0] == fingerprints[1]


@pytest.mark.parametrize(
    ("name", "key", "value", "sentence"),
    [
        ("granite", "rope.scaling.finetuned", False, "rope.scaling.finetuned in .* must be true, but is false"),
        ("llama", "rope.scaling.attn_factor", 1.5, r"attn_factor needs rope_factors_long\.weight, but is 1\.5"),
        ("qwen3moe", "expert_weights_scale", 2.5, "there is also expert_weights_scale"),
        ("qwen2 yarn", "rope.scaling.yarn_log_multiplier", 0.1, "there is also rope.scaling.yarn_log_multiplier"),
        ("glm4", "nextn_predict_layers", 1, "there is also nextn_predict_layers"),
    ],
)
def test_keys_of_other_models_are_refused(tmp_path: Path, name: str, key: str, value: Any, sentence: str) -> None:
    architecture, kind, settings, change = CASES[name]
    save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "model.gguf", architecture, tmp_path / "hf", change, keys={key: value})
    with pytest.raises(UnsupportedError, match=sentence):
        convert(tmp_path / "model.gguf", tmp_path / "ours")


def test_gemma_2_of_27b_divides_by_another_number() -> None:
    """What its file does not say: Gemma 2 27B has query_pre_attn_scalar 144, the others the width of a head."""
    sizes = {"embedding_length": 4608, "attention.head_count": 32, "attention.key_length": 128}
    for layers, divisor in ((46, 144), (42, 128)):
        found = {**sizes, "block_count": layers, "feed_forward_length": 9, "attention.layer_norm_rms_epsilon": 1e-6}
        values = {name: value for row in ARCHITECTURES["gemma2"] for name, value in row.read(found).items()}
        assert values["attention_scale"] == divisor**-0.5
        assert (values["attention_softcap"], values["logit_softcap"], values["sliding_window"]) == (50.0, 30.0, 4096)
        assert values["layer_types"][:3] == ["sliding_attention", "full_attention", "sliding_attention"]


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "mamba.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(UnsupportedError, match=r"one of llama, .*, but is 'mamba'"):
        convert(tmp_path / "mamba.gguf", tmp_path / "ours")
