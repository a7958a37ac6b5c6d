"""Exporters drop no setting in silence: the exported model computes the same, or the export is refused.

Every exporter is tried with another value of every field of `ModelConfig`, on models of several kinds. The importer (or
CTranslate2) reads back what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.export_guard import anything, canonical, obstacles, only, settings, where
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.checkpoint.formats.opennmt import write as opennmt
from onmt_llm.checkpoint.formats.peft.write import export_peft
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig, SpecialTokens, TokenizerSpec
from onmt_llm.config.model import Activation, FeatureConfig, ModelConfig
from onmt_llm.config.rope import RopeConfig
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.nn.device import DTYPES
from onmt_llm.nn.transformer import parameter_shapes
from onmt_llm.releasing import ct2_spec, release
from onmt_llm.text.vocab import Vocab

ROWS = 24
TOKENS = ["<pad>", "<unk>", "<s>", "</s>", *(f"t{i}" for i in range(ROWS - 4))]
SPECIALS = SpecialTokens(pad="<pad>")
SIZES: dict[str, Any] = {"decoder_layers": 2, "vocab_size": ROWS, "hidden_size": 24, "heads": 4, "ffn_size": 32}
GATED = {"ffn_gated": True, "activation": "silu", "norm": "rmsnorm", "position": "rotary"}
BIASES = {"attn_bias": True, "attn_out_bias": True, "ffn_bias": True}
KINDS: dict[str, dict[str, Any]] = {
    "llama": {**SIZES, **GATED},
    "falcon": {**SIZES, "activation": "gelu", "position": "rotary", "parallel_residual": True, "shared_norm": True},
    "phi": {
        **SIZES,
        **{"position": "rotary", "parallel_residual": True, "shared_norm": True, "lm_head_bias": True},
        **BIASES,
    },
    "mpt": {**SIZES, "ffn_size": 96, "activation": "gelu", "position": "alibi", "norm_bias": False},
    "gpt2": {**SIZES, "position": "learned", "max_position": 40, **BIASES},
    "transformer": {**SIZES, "encoder_layers": 2, "position": "sinusoidal", "scale_embeddings": True},
    "bart": {
        **{**SIZES, "encoder_layers": 2, "position": "learned", "max_position": 40, "norm_eps": 1e-5},
        **{"share_embeddings": True, "tie_embeddings": True, "embed_norm": True, "norm_position": "post", **BIASES},
    },
    "marian": {
        **{**SIZES, "encoder_layers": 2, "position": "sinusoidal", "norm_eps": 1e-5, "norm_position": "post"},
        **{"lm_head_bias": True, **BIASES},
    },
    "t5": {**SIZES, "encoder_layers": 2, "position": "t5", "relative_shared": True, "scale_attention": False},
}
BYTE_LEVEL = TokenizerSpec(kind="huggingface", file="tokenizer.json")
FEATURES = [FeatureConfig(vocab_size=6, size=4)]
SCALED = {"theta": 300.0, "factor": 3.0, "original_max_position": 8}
LONG = {**SCALED, "short_factor": [1.0, 1.0, 2.0], "long_factor": [2.0, 3.0, 4.0]}
CHANGES: dict[str, list[dict[str, Any]]] = {
    "encoder_layers": [{"encoder_layers": 1}],
    "decoder_layers": [{"decoder_layers": 3}, {"decoder_layers": 0, "encoder_layers": 1}],
    "vocab_size": [{"vocab_size": ROWS + 2}],
    "src_vocab_size": [{"src_vocab_size": ROWS + 3}],
    "hidden_size": [{"hidden_size": 32}],
    "heads": [{"heads": 2}],
    "kv_heads": [{"kv_heads": 2}, {"kv_heads": 1}],
    "head_dim": [{"head_dim": 8}],
    **{
        f"latent.{name}": [{"position": "rotary", "rope": RopeConfig(rotary_dim=2), "latent": {"kv_rank": 6, **values}}]
        for name, values in {"kv_rank": {}, "q_rank": {"q_rank": 8}, "value_dim": {"value_dim": 4}}.items()
    },
    "ffn_size": [{"ffn_size": 20}],
    "ffn_gated": [{"ffn_gated": True}, {"ffn_gated": False}],
    "moe.experts": [{"moe": {"experts": 3}}],
    "moe.experts_per_token": [{"moe": {"experts": 3, "experts_per_token": 1}}],
    "moe.expert_size": [{"moe": {"experts": 3, "expert_size": 16}}],
    "moe.normalize_weights": [{"moe": {"experts": 3, "normalize_weights": False}}],
    "moe.scoring": [{"moe": {"experts": 3, "scoring": "sigmoid"}}],
    "moe.selection_bias": [{"moe": {"experts": 3, "selection_bias": True}}],
    "moe.groups": [{"moe": {"experts": 4, "groups": 2}}],
    "moe.groups_per_token": [{"moe": {"experts": 4, "groups": 2, "groups_per_token": 2}}],
    "moe.routed_scale": [{"moe": {"experts": 3, "routed_scale": 2.0}}],
    "moe.shared_gate": [{"moe": {"experts": 3, "shared_size": 16, "shared_gate": False}}],
    "moe.router_bias": [{"moe": {"experts": 3, "router_bias": True}}],
    "moe.shared_size": [{"moe": {"experts": 3, "shared_size": 16}}],
    "moe.dense_layers": [{"moe": {"experts": 3, "dense_layers": [1]}}],
    "moe.balance_loss": [{"moe": {"experts": 3, "balance_loss": 0.5}}],
    "activation": [{"activation": name} for name in get_args(Activation)],
    "norm": [{"norm": "layernorm"}, {"norm": "rmsnorm"}],
    "norm_position": [{"norm_position": name} for name in ("post", "both", "output")],
    "norm_eps": [{"norm_eps": 0.3}],
    "norm_bias": [{"norm": "layernorm", "norm_bias": False}],
    "position": [
        *({"position": name} for name in ("rotary", "alibi", "sinusoidal", "t5", "learned", "none")),
        {"position": "shaw", "relative_positions": 3},
    ],
    "max_position": [{"max_position": 64}],
    "rope.theta": [{"position": "rotary", "rope": RopeConfig(theta=300.0)}],
    "rope.rotary_dim": [{"position": "rotary", "rope": RopeConfig(rotary_dim=4)}],
    "rope.scaling": [
        {"position": "rotary", "rope": RopeConfig(scaling="linear")},
        {"position": "rotary", "max_position": 8, "rope": RopeConfig(scaling="dynamic", **SCALED)},
    ],
    "rope.factor": [
        {"position": "rotary", "rope": RopeConfig(scaling=kind, **SCALED)} for kind in ("linear", "llama3", "yarn")
    ],
    **{
        f"rope.{name}": [{"position": "rotary", "rope": RopeConfig(scaling="yarn", **{**SCALED, name: value})}]
        for name, value in {"beta_fast": 2.0, "beta_slow": 0.5, "truncate": False, "attention_factor": 1.3}.items()
    },
    **{
        f"rope.{name}": [
            {"position": "rotary", "max_position": 32, "rope": RopeConfig(scaling="longrope", **{**LONG, name: value})}
        ]
        for name, value in {"short_factor": [1.0, 2.0, 1.0], "long_factor": [5.0, 4.0, 3.0]}.items()
    },
    "rope.low_freq_factor": [
        {"position": "rotary", "rope": RopeConfig(scaling="llama3", low_freq_factor=2.0, **SCALED)}
    ],
    "rope.high_freq_factor": [
        {"position": "rotary", "rope": RopeConfig(scaling="llama3", high_freq_factor=9.0, **SCALED)}
    ],
    "rope.original_max_position": [
        {"position": "rotary", "rope": RopeConfig(scaling="llama3", **{**SCALED, "original_max_position": 16})}
    ],
    "rope.local_theta": [
        {"position": "rotary", "sliding_window": 3, "rope": RopeConfig(**rope, local_theta=30.0)}
        for rope in ({}, {"scaling": "linear", **SCALED})
    ],
    "rope_layers": [{"position": "rotary", "rope_layers": [True, False]}],
    "sinusoid": [{"position": "sinusoidal", "sinusoid": kind} for kind in ("concat", "fairseq")],
    "relative_positions": [{"position": "shaw", "relative_positions": 2}],
    "relative_buckets": [{"position": "t5", "relative_buckets": 6}],
    "relative_max_distance": [{"position": "t5", "relative_buckets": 6, "relative_max_distance": 5}],
    "relative_shared": [{"position": "t5", "relative_shared": False}, {"position": "t5", "relative_shared": True}],
    "alibi_scaled": [{"position": "alibi", "alibi_scaled": True}],
    "parallel_residual": [{"parallel_residual": True}, {"parallel_residual": False, "shared_norm": False}],
    "shared_norm": [{"parallel_residual": True, "shared_norm": True}, {"shared_norm": False}],
    "qk_norm": [{"qk_norm": True}],
    "qk_norm_type": [{"qk_norm": True, "qk_norm_type": "layernorm"}],
    "qk_norm_over": [{"qk_norm": True, "qk_norm_over": "all_heads"}],
    "scale_attention": [{"scale_attention": False}, {"scale_attention": True}],
    "attention_scale": [{"attention_scale": 0.3}],
    "embedding_scale": [{"embedding_scale": 3.0, "scale_embeddings": False}],
    "residual_scale": [{"residual_scale": 0.5}],
    "logit_scale": [{"logit_scale": 0.5}],
    "attention_softcap": [{"attention_softcap": 0.5}],
    "attention_sinks": [{"attention_sinks": True}],
    "attn_bias": [{"attn_bias": True}, {"attn_bias": True, "attn_out_bias": True, "ffn_bias": True}],
    "attn_out_bias": [{"attn_out_bias": True}, {"attn_out_bias": False}],
    "ffn_bias": [{"ffn_bias": True}],
    "lm_head_bias": [{"lm_head_bias": True}],
    "sliding_window": [{"sliding_window": 3}, {"sliding_window": 1}],
    "layer_types": [
        {"sliding_window": 3, "layer_types": [f"{name}_attention" for name in names]}
        for names in (("sliding", "full"), ("full", "sliding"), ("sliding", "sliding"))
    ],
    "scale_embeddings": [{"scale_embeddings": True}, {"scale_embeddings": False}],
    "embed_norm": [{"embed_norm": True}],
    "scale_logits": [{"scale_logits": True}],
    "logit_softcap": [{"logit_softcap": 0.5}],
    "src_features": [
        {"src_features": FEATURES},
        {"src_features": [*FEATURES, FeatureConfig(vocab_size=6, size=8)]},
    ],
    "feat_merge": [{"feat_merge": "sum", "src_features": [FeatureConfig(vocab_size=6, size=24)]}],
    "tie_embeddings": [{"tie_embeddings": True}],
    "share_embeddings": [{"share_embeddings": True}],
    "dtype": [{"dtype": "bf16"}, {"dtype": "fp16"}],
}
"""Other values of every setting, with what they need."""

ROUNDING = {"fp32": 1e-4, "bf16": 0.1, "fp16": 0.02}


def models_of(name: str) -> Iterator[ModelConfig]:
    """Models of every kind with another value of the setting `name`; those that nobody can build are left out."""
    for kind in KINDS.values():
        for change in CHANGES[name]:
            try:
                config = ModelConfig(**{**kind, **change})
                parameter_shapes(config)
            except (ValidationError, ConfigError):
                continue
            yield config


def save(path: Path, config: ModelConfig, tokenizer: TokenizerSpec) -> Checkpoint:
    """A checkpoint with random weights, and words as tokens."""
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(path, CheckpointConfig(model=config, specials=SPECIALS, tokenizer=tokenizer)) as writer:
        for name, shape in parameter_shapes(config).items():
            tensor = torch.randn(shape, generator=generator) * 0.3 + name.endswith("norm.weight")
            writer.add(name, tensor.to(DTYPES[config.dtype]))
        if tokenizer.file is not None:
            words = Tokenizer(WordLevel({token: i for i, token in enumerate(TOKENS)}, unk_token="<unk>"))
            words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
            writer.add_text(tokenizer.file, words.to_str())
        for file, rows in (("vocab.txt", config.vocab_size), ("src_vocab.txt", config.src_vocab_size)):
            if rows:
                tokens = [*TOKENS, *(f"more{i}" for i in range(rows - ROWS))]
                Vocab(tokens, SPECIALS).write(writer.directory / file)
        for i, feature in enumerate(config.src_features):
            Vocab(TOKENS[: feature.vocab_size], SPECIALS).write(writer.directory / f"src_feat{i}_vocab.txt")
    return Checkpoint.open(path)


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    model = load_model(path, dtype="fp32")
    config = model.config
    tgt_BT = torch.randint(4, ROWS, (2, 20), generator=torch.Generator().manual_seed(1))
    if config.is_decoder_only:
        return model(tgt_BT)
    src_BS = tgt_BT.flip(1)
    mask_BS = torch.ones_like(src_BS, dtype=torch.bool)
    features = {"features_BSF": (src_BS % 6)[..., None].expand(-1, -1, len(config.src_features))}
    return model(src_BS, tgt_BT, src_mask_BS=mask_BS, **(features if config.src_features else {}))


def through_huggingface(ours: Checkpoint, folder: Path) -> None:
    export_hf(ours, folder / "there")
    back = convert(folder / "there", folder / "back")
    torch.testing.assert_close(logits(back), logits(ours.path), atol=ROUNDING[ours.config.model.dtype], rtol=1e-4)
    assert canonical(Checkpoint.open(back).config.model) == canonical(ours.config.model)


def through_opennmt(ours: Checkpoint, folder: Path) -> None:
    """Its options are fewer, so the model that comes back may have another configuration, but computes the same."""
    back = convert(opennmt.export_opennmt(ours, folder / "there.pt"), folder / "back")
    torch.testing.assert_close(logits(back), logits(ours.path), atol=ROUNDING[ours.config.model.dtype], rtol=1e-3)


def through_ctranslate2(ours: Checkpoint, folder: Path) -> None:
    """`strict`: it is published only if CTranslate2 computes the same."""
    assert release(ours.path, folder / "there", text=" ".join(TOKENS[4:] * 3))["verdict"] == "pass"


def huggingface_obstacles(config: ModelConfig) -> list[str]:
    found = [obstacles(config, family.expressible) for family in FAMILIES]
    return [] if [] in found else found[0]


EXPORTERS: dict[str, tuple[Callable[[ModelConfig], list[str]], Callable[[Checkpoint, Path], None]]] = {
    "huggingface": (huggingface_obstacles, through_huggingface),
    "opennmt": (lambda config: obstacles(config, opennmt.EXPRESSIBLE), through_opennmt),
    "ctranslate2": (lambda config: obstacles(config, ct2_spec.EXPRESSIBLE), through_ctranslate2),
}


def test_every_setting_has_another_value_here() -> None:
    """A new field of `ModelConfig` needs a decision of every exporter, and a line in `CHANGES`."""
    assert CHANGES.keys() == settings(ModelConfig()).keys()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("exporter", EXPORTERS)
@pytest.mark.parametrize("models", [1, pytest.param(None, marks=pytest.mark.slow, id="all")])
def test_a_setting_is_exported_or_refused(tmp_path: Path, exporter: str, name: str, models: int | None) -> None:
    refuses, round_trip = EXPORTERS[exporter]
    accepted = (config for config in models_of(name) if not refuses(config))
    for number, config in enumerate(islice(accepted, models)):
        folder = tmp_path / str(number)
        ours = save(folder / "ours", config, BYTE_LEVEL if exporter == "huggingface" else TokenizerSpec())
        round_trip(ours, folder)


def test_every_exporter_asks_the_guard(tmp_path: Path) -> None:
    ours = save(tmp_path / "ours", ModelConfig(**KINDS["llama"], norm_position="post", scale_logits=True), BYTE_LEVEL)
    adapter = AdapterSpec(rank=2, alpha=4, layers=["q_proj"], base=str(ours.path), base_fingerprint=ours.fingerprint)
    with CheckpointWriter(tmp_path / "lora", ours.config.model_copy(update={"adapter": adapter})) as writer:
        writer.add("decoder.layers.0.self_attn.q_proj.lora_a", torch.ones(2, 24))
    there = tmp_path / "there"
    for export in (
        lambda: export_hf(ours, there),
        lambda: export_peft(tmp_path / "lora", there),
        lambda: opennmt.export_opennmt(ours, there),
    ):
        with pytest.raises(UnsupportedError, match="norm_position is post"):
            export()
    with pytest.raises(UnsupportedError, match="sliding_window is 1"):
        release(save(tmp_path / "window", ModelConfig(**KINDS["llama"], sliding_window=1), TokenizerSpec()).path, there)
    encoder = save(tmp_path / "encoder", ModelConfig(**{**KINDS["bart"], "decoder_layers": 0}), BYTE_LEVEL)
    with pytest.raises(UnsupportedError, match="decoder_layers is 0"):
        export_hf(encoder, there)
    assert not list(tmp_path.glob("there*"))


KINDS_OF = {
    **{name: [name] for name in ("llama", "falcon", "phi", "mpt", "gpt2", "bart", "marian")},
    **{name: ["llama"] for name in ("mistral", "phi3")},
}


@pytest.mark.parametrize(
    ("table", "kinds"),
    [
        *((family.expressible, KINDS_OF.get(family.model_type, [])) for family in FAMILIES),
        (opennmt.EXPRESSIBLE, ["llama", "gpt2", "transformer", "t5"]),
        (ct2_spec.EXPRESSIBLE, list(KINDS)),
    ],
    ids=[*(family.model_type for family in FAMILIES), "opennmt", "ctranslate2"],
)
def test_what_could_be_exported_still_can(table: dict[str, Any], kinds: list[str]) -> None:
    assert table.keys() <= CHANGES.keys()
    for kind in kinds:
        assert obstacles(ModelConfig(**KINDS[kind]), table) == []


def test_every_setting_of_an_adapter_is_known_to_peft() -> None:
    """A new field of `AdapterSpec` needs a decision in `formats/peft/`, and its name here."""
    as_settings = {"rank", "alpha", "dropout", "layers", "rslora", "dora", "rank_pattern", "alpha_pattern"}
    as_weights = {"embedding", "init", "init_iter"}
    of_the_base = {"base", "base_fingerprint", "quant_layers", "quant_type"}
    assert AdapterSpec.model_fields.keys() == as_settings | as_weights | of_the_base


def test_what_is_not_listed_must_be_at_its_default() -> None:
    multi_query = where(lambda config: config.num_kv_heads in (1, config.heads), ", neither all nor 1")
    table = {**anything("hidden_size", "norm"), "heads": only(4, 8), "kv_heads": multi_query}
    assert obstacles(ModelConfig(hidden_size=64, heads=4), table) == []
    config = ModelConfig(heads=16, kv_heads=4, qk_norm=True, sliding_window=5, dtype="bf16")
    found = [
        "heads is 16",
        "kv_heads is 4, neither all nor 1",
        "qk_norm is true",
        "sliding_window is 5",
        "dtype is bf16",
    ]
    assert obstacles(config, table) == found


def test_settings_without_effect_are_no_obstacle() -> None:
    plain = ModelConfig(position="rotary", norm="rmsnorm")
    odd = ModelConfig(
        **{"position": "rotary", "norm": "rmsnorm", "norm_bias": False, "sinusoid": "concat", "kv_heads": 8},
        **{"relative_buckets": 8, "alibi_scaled": True, "src_vocab_size": 9, "share_embeddings": True, "head_dim": 64},
        rope=RopeConfig(rotary_dim=64, factor=3.0),
    )
    assert canonical(odd) == canonical(plain) == plain
    assert obstacles(odd, anything("position", "norm")) == []
