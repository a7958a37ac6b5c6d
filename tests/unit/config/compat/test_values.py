"""Options of OpenNMT-py whose values are translated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.compat.translate import translate
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import ConfigError

POSITIONS = {
    "max_relative_positions: 16": {"position": "shaw", "relative_positions": 16},
    "max_relative_positions: 100\nrelative_positions_buckets: 24": {
        "position": "t5",
        "relative_buckets": 24,
        "relative_max_distance": 100,
    },
    "relative_positions_buckets: 24": {"position": "t5", "relative_buckets": 24, "relative_max_distance": 128},
    "max_relative_positions: -2\nrelative_positions_buckets: 0": {"position": "alibi"},
    "max_relative_positions: 0\nposition_encoding: false": {"position": "none"},
    "position_encoding: true\nposition_encoding_type: SinusoidalConcat": {
        "position": "sinusoidal",
        "sinusoid": "concat",
    },
    "position_encoding_type: SinusoidalInterleaved": {"position": "sinusoidal", "sinusoid": "standard"},
    "relative_positions_buckets: 0": {"position": "sinusoidal"},
}


@pytest.mark.parametrize("text", POSITIONS, ids=str)
def test_positions(text: str) -> None:
    model = ModelConfig.model_validate(translate(yaml.safe_load(text)).values)
    assert {name: getattr(model, name) for name in POSITIONS[text]} == POSITIONS[text]


def test_sizes_that_rnns_had_apart_are_one(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text("src_word_vec_size: 64\nenc_hid_size: 64\ndec_hid_size: 500\nword_vec_size: -1\nlayers: -1\n")
    job = load_job("onmt_llm_train", ["-config", str(file)]).job
    assert job.architecture.hidden_size == 64 and job.architecture.encoder_layers == 0
    file.write_text("hidden_size: 32\ntgt_word_vec_size: 64\n")
    with pytest.raises(ConfigError, match=r"'tgt_word_vec_size' must equal hidden_size \(32\), but is 64"):
        load_job("onmt_llm_train", ["-config", str(file)])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"sliding_window": 3}, 3),
        ({"sliding_window": 3, "encoder_type": "transformer", "decoder_type": "transformer"}, 4),
        ({"sliding_window": 3, "decoder_type": "transformer_lm"}, 4),
        ({"sliding_window": 0, "encoder_type": "transformer"}, None),
    ],
)
def test_a_window_counts_as_the_file_s_names_count_it(written: dict[str, Any], meant: int | None) -> None:
    translated = translate(written)
    assert translated.values["sliding_window"] == meant
    assert any(key == "sliding_window" for key, _ in translated.notes) == (meant == 4)
    assert translate(translated.values).values.get("sliding_window") == meant


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an encoder of another kind": ({"encoder_type": "brnn"}, "encoder_type"),
    "a decoder of another kind": ({"decoder_type": "cnn"}, "decoder_type"),
    "an unknown norm": ({"layer_norm": "batch"}, "layer_norm"),
    "positions beyond the sentinels": ({"max_relative_positions": -3}, "max_relative_positions"),
    "an unknown order of sines": ({"position_encoding_type": "Fourier"}, "position_encoding_type"),
    "attention of another kind": ({"self_attn_type": "linear"}, "self_attn_type"),
    "a list for a single value": ({"layers": [1, 2]}, "layers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_value_without_translation_is_an_error_of_its_option(case: str) -> None:
    written, option = REFUSED[case]
    ((key, sentence),) = translate(written).errors
    assert key == option and sentence.startswith(f"'{option}' must be ")


TRANSLATED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a gated activation": (
        {"pos_ffn_activation_fn": "gated-gelu-tanh"},
        {"activation": "gelu_tanh", "ffn_gated": True},
    ),
    "silu, which is gated there": ({"pos_ffn_activation_fn": "silu"}, {"activation": "silu", "ffn_gated": True}),
    "our own word stands": ({"ffn_gated": False, "pos_ffn_activation_fn": "silu"}, {"ffn_gated": False}),
    "RMSNorm": ({"layer_norm": "rms"}, {"norm": "rmsnorm"}),
    "multi-query attention": ({"multiquery": True, "num_kv": 4}, {"kv_heads": 1}),
    "no grouped queries": ({"num_kv": 0}, {}),
    "one switch for all biases of attention": ({"add_qkvbias": True}, {"attn_bias": True, "attn_out_bias": True}),
    "two options in one mapping": (
        {"rotary_theta": 5000, "rotary_dim": 0},
        {"rope": {"theta": 5000, "rotary_dim": None}},
    ),
    "experts": (
        {"num_experts": 8, "num_experts_per_tok": 3},
        {"moe": {"experts": 8, "experts_per_token": 3}},
    ),
    "a type by torch's name": ({"model_dtype": "bfloat16"}, {"model_dtype": "bf16"}),
    "no GPU": ({"gpu": -1}, {"device": "cpu"}),
    "no checkpoint": ({"train_from": ""}, {"train_from": None}),
    "a default size": ({"feat_vec_size": -1}, {"feat_vec_size": None}),
}


@pytest.mark.parametrize("case", TRANSLATED)
def test_values_are_translated(case: str) -> None:
    written, expected = TRANSLATED[case]
    translated = translate(written)
    assert not translated.errors
    assert {name: translated.values.get(name, "missing") for name in expected} == expected
    assert expected or not translated.values


@pytest.mark.parametrize(
    ("written", "top_k"),
    [
        ({"random_sampling_topp": 0.9}, -1),
        ({"random_sampling_topp": 0.9, "random_sampling_topk": 0}, -1),
        ({"random_sampling_topp": 0.9, "random_sampling_topk": 40}, 40),
        ({"random_sampling_topp": 0.0, "random_sampling_topk": 40}, 40),
        ({"random_sampling_topk": 0}, 0),
        ({"random_sampling_topk": 0, "random_sampling_topp": 0.0, "gpu": -1}, 1),
        ({"random_sampling_topp": 1.0}, None),
    ],
)
def test_top_p_samples_by_itself_and_0_is_no_sampling_in_its_files(written: dict[str, Any], top_k: int | None) -> None:
    assert translate(written, {*written} - {"gpu"}).values.get("random_sampling_topk") == top_k


def test_beams_of_a_file_that_samples_are_said_to_go_first() -> None:
    written = {"random_sampling_topk": 40, "beam_size": 5, "gpu": 0}
    translated = translate(written, {*written} - {"gpu"})
    assert translated.values["beam_size"] == 5
    assert [key for key, _ in translated.notes] == ["beam_size"]
    del written["gpu"]
    assert not translate(written, written).notes


def test_values_that_ask_for_what_is_gone_are_refused() -> None:
    for key, value in (("generator_function", "sparsemax"), ("data_type", "audio"), ("parallel_mode", "pipeline")):
        assert [name for name, _ in translate({key: value}).errors] == [key]
    assert not translate({"generator_function": "softmax", "data_type": "text"}).errors


def test_tensor_parallel_divides_a_model_among_all_processes() -> None:
    assert translate({"parallel_mode": "tensor_parallel", "world_size": 4}).values["tensor_parallel"] == 4
    assert "tensor_parallel" not in translate({"parallel_mode": "data_parallel", "world_size": 4}).values


def test_adafactor_of_an_opennmt_file_is_said_to_be_another() -> None:
    def notes(written: dict[str, Any]) -> list[str]:
        return [sentence for _, sentence in translate(written, {*written} - {"world_size"}).notes]

    assert any("adafactor" in sentence for sentence in notes({"optim": "adafactor", "world_size": 1, "gpu_ranks": [0]}))
    assert not notes({"optim": "adafactor"})


def test_the_width_of_transformers_was_once_called_rnn_size() -> None:
    transformer = {"encoder_type": "transformer", "decoder_type": "transformer"}
    assert translate({**transformer, "rnn_size": 500, "word_vec_size": 500}).values["hidden_size"] == 500
    ((key, _),) = translate({"rnn_size": 500}).errors
    assert key == "rnn_size"
    ((key, _),) = translate({**transformer, "rnn_size": 512, "word_vec_size": 256}).errors
    assert key == "rnn_size"
