"""OpenNMT-py v3 checkpoints, written here in its exact format, against independent models with the same weights.

The decoder-only one is a Llama of `transformers`, the encoder-decoder `torch.nn.Transformer`. (The converter was also
compared with OpenNMT-py 3.5.1 itself on ten architectures, to 3e-6; it does not install beside our other packages.)
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.merge import merge_lora
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.errors import CheckpointError, ConfigError, UnsupportedError

transformers = pytest.importorskip("transformers")

HIDDEN, HEADS, KV_HEADS, LAYERS, VOCAB = 32, 4, 2, 2, 24
TOKENS = ["<unk>", "<s>", "</s>", "<blank>", *(f"t{i}" for i in range(VOCAB - 4))]
EMBEDDING = "embeddings.make_embedding.emb_luts.0.weight"
TGT = torch.tensor([[1, 5, 7, 9, 20, 12, 4]])
SRC = torch.tensor([[6, 9, 22, 13, 4]])


def options(**changes: Any) -> Namespace:
    values: dict[str, Any] = {
        "model_task": "lm",
        "decoder_type": "transformer_lm",
        "encoder_type": "rnn",
        "enc_layers": LAYERS,
        "dec_layers": LAYERS,
        "layers": -1,
        "hidden_size": HIDDEN,
        "heads": HEADS,
        "transformer_ff": 48,
        "pos_ffn_activation_fn": "relu",
        "layer_norm": "standard",
        "norm_eps": 1e-6,
        "position_encoding": False,
        "max_relative_positions": 0,
        "transforms": ["sentencepiece", "filtertoolong"],
        "_all_transform": {"sentencepiece", "filtertoolong"},
        "src_subword_model": "/data/tokenizer.model",
        "data": {"corpus": {"path_src": "x", "weight": 1}},
    }
    return Namespace(**{**values, **changes})


def save(file: Path, model: dict[str, Any], generator: dict[str, Any] | None, opt: Namespace) -> None:
    vocab = {"src": TOKENS, "tgt": TOKENS, "data_task": opt.model_task, "decoder_start_token": "<s>"}
    model = {name: tensor.detach().clone() for name, tensor in model.items()}
    content = {"model": model, "generator": generator, "vocab": vocab, "opt": opt, "optim": {"training_step": 10}}
    torch.save(content, file)


def neighbours(weight: torch.Tensor) -> torch.Tensor:
    """Rows of halves (2, d/2) to rows of neighbours (d/2, 2), head by head: `rotary_interleave: true`."""
    size = HIDDEN // HEADS
    return weight.view(-1, 2, size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def llama() -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=48,
        vocab_size=VOCAB,
        rms_norm_eps=1e-5,
    )
    model = transformers.LlamaForCausalLM(config).eval().float()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


LLAMA = {
    "layer_norm": "rms",
    "norm_eps": 1e-5,
    "pos_ffn_activation_fn": "silu",
    "num_kv": KV_HEADS,
    "max_relative_positions": -1,
}
LM_NAMES = {
    "self_attn.linear_query": "self_attn.q_proj",
    "self_attn.linear_keys": "self_attn.k_proj",
    "self_attn.linear_values": "self_attn.v_proj",
    "self_attn.final_linear": "self_attn.o_proj",
    "layer_norm_1": "input_layernorm",
    "feed_forward.layer_norm": "post_attention_layernorm",
    "feed_forward.w_1": "mlp.gate_proj",
    "feed_forward.w_2": "mlp.down_proj",
    "feed_forward.w_3": "mlp.up_proj",
}


def llama_tensors(theirs: Any, *, interleaved: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    state = theirs.state_dict()
    model = {
        f"decoder.{EMBEDDING}": state["model.embed_tokens.weight"],
        "decoder.layer_norm.weight": state["model.norm.weight"],
    }
    for i in range(LAYERS):
        for name, hf in LM_NAMES.items():
            weight = state[f"model.layers.{i}.{hf}.weight"]
            turn = interleaved and ("query" in name or "keys" in name)
            model[f"decoder.transformer_layers.{i}.{name}.weight"] = neighbours(weight) if turn else weight
    return model, {"weight": state["lm_head.weight"], "bias": torch.zeros(VOCAB)}


@torch.no_grad()
def distance(path: Path, logits: torch.Tensor, *ids: torch.Tensor) -> float:
    return float((load_model(path)(*ids) - logits).abs().max())


@pytest.mark.parametrize("interleaved", [True, False])
def test_language_model(tmp_path: Path, interleaved: bool) -> None:
    theirs = llama()
    save(
        tmp_path / "llama.pt",
        *llama_tensors(theirs, interleaved=interleaved),
        options(rotary_interleave=interleaved, **LLAMA),
    )
    convert(tmp_path / "llama", tmp_path / "ours")
    with torch.no_grad():
        assert distance(tmp_path / "ours", theirs(TGT).logits, TGT) <= 1e-5
    config = Checkpoint.open(tmp_path / "ours").config
    assert (config.specials.bos, config.specials.pad, config.specials.add_bos) == ("<s>", "<blank>", True)
    assert not config.model.lm_head_bias


def test_safetensors_sidecars_and_old_names(tmp_path: Path) -> None:
    theirs = llama()
    model, generator = llama_tensors(theirs, interleaved=True)
    tensors = {**model, **{f"generator.{name}": tensor for name, tensor in generator.items()}}
    for number in range(2):
        part = {name: tensor.contiguous() for name, tensor in list(tensors.items())[number::2]}
        save_file(part, tmp_path / f"split.{number:02d}.safetensors")
    opt = options(**LLAMA)  # from before rotary_interleave existed: neighbours
    torch.save({"vocab": {"src": TOKENS, "tgt": TOKENS}, "opt": opt}, tmp_path / "split.pt")
    renamed = {name.replace("layer_norm.weight", "layer_norm.a_2"): tensor for name, tensor in model.items()}
    save(tmp_path / "old.pt", renamed, {f"0.{name}": tensor for name, tensor in generator.items()}, opt)
    for name in ("split", "old"):
        convert(tmp_path / f"{name}.pt", tmp_path / name)
        with torch.no_grad():
            assert distance(tmp_path / name, theirs(TGT).logits, TGT) <= 1e-5


def test_lora_file_merges_into_its_base(tmp_path: Path) -> None:
    theirs = llama()
    opt = options(rotary_interleave=True, **LLAMA)
    save(tmp_path / "base.pt", *llama_tensors(theirs, interleaved=True), opt)
    adapter, scale = {}, 16 / 2
    for i in range(LAYERS):
        for name in ("linear_query", "final_linear"):
            projection = theirs.model.layers[i].self_attn.get_submodule({"linear_query": "q_proj"}.get(name, "o_proj"))
            a, b = torch.randn(2, HIDDEN) * 0.1, torch.randn(HIDDEN, 2) * 0.1
            projection.weight.data += scale * b @ a
            layer = f"decoder.transformer_layers.{i}.self_attn.{name}"
            adapter |= {f"{layer}.lora_A": a, f"{layer}.lora_B": neighbours(b) if name == "linear_query" else b}
    lora = {"lora_rank": 2, "lora_alpha": 16, "lora_dropout": 0.05, "train_from": "base"}
    save(tmp_path / "lora.pt", adapter, None, Namespace(**{**vars(opt), **lora}))
    convert(tmp_path / "base", tmp_path / "base_ours")
    convert(tmp_path / "lora", tmp_path / "lora_ours")
    spec = Checkpoint.open(tmp_path / "lora_ours").config.adapter
    assert spec is not None and (spec.rank, spec.alpha, spec.layers) == (2, 16, ["o_proj", "q_proj"])
    merge_lora(tmp_path / "base_ours", tmp_path / "lora_ours", tmp_path / "merged")
    with torch.no_grad():
        assert distance(tmp_path / "merged", theirs(TGT).logits, TGT) <= 1e-5


def sines(rows: int) -> torch.Tensor:
    """Interleaved sines and cosines."""
    angles = torch.outer(torch.arange(rows), torch.exp(torch.arange(0, HIDDEN, 2) * -(math.log(10000.0) / HIDDEN)))
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class Reference(nn.Module):
    """Pre-norm Transformer out of torch's own parts, with alternating sines and cosines."""

    def __init__(self) -> None:
        super().__init__()
        shape = {"d_model": HIDDEN, "nhead": HEADS, "dim_feedforward": 48, "dropout": 0.0, "batch_first": True}
        self.src, self.tgt = nn.Embedding(VOCAB, HIDDEN), nn.Embedding(VOCAB, HIDDEN)
        self.encoder = nn.ModuleList(
            nn.TransformerEncoderLayer(**shape, norm_first=True, layer_norm_eps=1e-6) for _ in range(LAYERS)
        )
        self.decoder = nn.ModuleList(
            nn.TransformerDecoderLayer(**shape, norm_first=True, layer_norm_eps=1e-6) for _ in range(LAYERS)
        )
        self.encoder_norm, self.decoder_norm = (nn.LayerNorm(HIDDEN, eps=1e-6) for _ in range(2))
        self.head = nn.Linear(HIDDEN, VOCAB)

    def embed(self, table: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        return table(ids) * math.sqrt(HIDDEN) + sines(ids.shape[1])

    def forward(self, src: torch.Tensor, tgt: torch.Tensor) -> torch.Tensor:
        memory = self.embed(self.src, src)
        for layer in self.encoder:
            memory = layer(memory)
        memory = self.encoder_norm(memory)
        x, causal = self.embed(self.tgt, tgt), nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=causal)
        return self.head(self.decoder_norm(x))


def seq2seq_tensors(theirs: Reference) -> dict[str, torch.Tensor]:
    def attention(prefix: str, module: nn.MultiheadAttention) -> dict[str, torch.Tensor]:
        found = {f"{prefix}.final_linear.{kind}": tensor for kind, tensor in module.out_proj.named_parameters()}
        for kind, fused in (("weight", module.in_proj_weight), ("bias", module.in_proj_bias)):
            for name, part in zip(("query", "keys", "values"), fused.chunk(3), strict=True):
                found[f"{prefix}.linear_{name}.{kind}"] = part
        return found

    def plain(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
        return {f"{prefix}.{kind}": tensor for kind, tensor in module.named_parameters()}

    tensors = {f"encoder.{EMBEDDING}": theirs.src.weight, f"decoder.{EMBEDDING}": theirs.tgt.weight}
    table = sines(5000)[:, None]
    tensors |= {f"{side}.embeddings.make_embedding.pe.pe": table for side in ("encoder", "decoder")}
    tensors |= plain("encoder.layer_norm", theirs.encoder_norm) | plain("decoder.layer_norm", theirs.decoder_norm)
    for i in range(LAYERS):
        layer, name = theirs.encoder[i], f"encoder.transformer.{i}"
        tensors |= attention(f"{name}.self_attn", layer.self_attn) | plain(f"{name}.layer_norm", layer.norm1)
        tensors |= plain(f"{name}.feed_forward.w_1", layer.linear1) | plain(f"{name}.feed_forward.w_2", layer.linear2)
        tensors |= plain(f"{name}.feed_forward.layer_norm", layer.norm2)
        layer, name = theirs.decoder[i], f"decoder.transformer_layers.{i}"
        tensors |= attention(f"{name}.self_attn", layer.self_attn) | plain(f"{name}.layer_norm_1", layer.norm1)
        tensors |= attention(f"{name}.context_attn", layer.multihead_attn) | plain(f"{name}.layer_norm_2", layer.norm2)
        tensors |= plain(f"{name}.feed_forward.w_1", layer.linear1) | plain(f"{name}.feed_forward.w_2", layer.linear2)
        tensors |= plain(f"{name}.feed_forward.layer_norm", layer.norm3)
    return tensors


def test_encoder_decoder_with_alternating_sinusoids(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = Reference().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
        expected = theirs(SRC, TGT)
    seq2seq = {
        "model_task": "seq2seq",
        "decoder_type": "transformer",
        "encoder_type": "transformer",
        "position_encoding": True,
    }
    save(tmp_path / "model.pt", seq2seq_tensors(theirs), dict(theirs.head.named_parameters()), options(**seq2seq))
    convert(tmp_path / "model.pt", tmp_path / "ours", source="opennmt")
    config = Checkpoint.open(tmp_path / "ours").config.model
    assert config.position == "sinusoidal" and config.scale_embeddings and config.attn_out_bias and config.lm_head_bias
    assert distance(tmp_path / "ours", expected, SRC, TGT) <= 1e-5


def test_two_subword_models_are_stored_each_on_its_side(tmp_path: Path) -> None:
    theirs = Reference()
    seq2seq = {"model_task": "seq2seq", "decoder_type": "transformer", "encoder_type": "transformer"}
    names = {"src_subword_model": "de/sp.model", "tgt_subword_model": "en/sp.model"}
    opt = options(**seq2seq, position_encoding=True, _all_transform={"sentencepiece", "filtertoolong"}, **names)
    save(tmp_path / "model.pt", seq2seq_tensors(theirs), dict(theirs.head.named_parameters()), opt)
    models = {}
    for side in ("de", "en"):
        (tmp_path / side).mkdir()
        models[side] = tmp_path / side / "sp.model"
        models[side].write_text(side)
    with pytest.raises(CheckpointError, match=r"two subword models, de/sp.model for sources and en/sp.model"):
        convert(tmp_path / "model.pt", tmp_path / "ours", tokenizer_model=models["en"])
    convert(tmp_path / "model.pt", tmp_path / "ours", tokenizer_model=models["en"], src_tokenizer_model=models["de"])
    checkpoint = Checkpoint.open(tmp_path / "ours")
    specs = (checkpoint.config.src_tokenizer, checkpoint.config.tokenizer)
    assert [(checkpoint.path / str(spec and spec.file)).read_text() for spec in specs] == ["de", "en"]
    with pytest.raises(ConfigError, match="src_tokenizer_model needs tokenizer_model"):
        convert(tmp_path / "model.pt", tmp_path / "no", src_tokenizer_model=models["de"])


def test_what_is_refused(tmp_path: Path) -> None:
    model, generator = llama_tensors(llama(), interleaved=True)
    file = tmp_path / "model.pt"
    for change, part in (
        ({"copy_attn": True}, "copy_attn: True"),
        ({"num_experts": 8}, "num_experts: 8"),
        ({"model_task": "seq2seq", "decoder_type": "rnn"}, "decoder_type: rnn"),
    ):
        save(file, model, generator, options(**{**LLAMA, **change}))
        with pytest.raises(UnsupportedError, match=part):
            convert(file, tmp_path / "ours")
    save(file, {**model, "decoder.x.weight": torch.zeros(2, dtype=torch.int8)}, generator, options(**LLAMA))
    with pytest.raises(UnsupportedError, match="quantised"):
        convert(file, tmp_path / "ours")
    save(file, model, generator, options(**LLAMA, odd=Path("x")))
    with pytest.raises(CheckpointError, match=r"its pickle names pathlib"):
        convert(file, tmp_path / "ours")
    save(file, model, generator, options(**LLAMA, src_onmttok_kwargs="__import__('os')", transforms=["onmt_tokenize"]))
    with pytest.raises(CheckpointError, match="literal mapping"):
        convert(file, tmp_path / "ours")
    torch.save({"model": model}, file)
    with pytest.raises(CheckpointError, match="no opt and no vocab"):
        convert(file, tmp_path / "ours")
    with pytest.raises(CheckpointError, match="hold a model in a known format"):
        convert(tmp_path / "absent", tmp_path / "ours")
