"""Int8 releases: rows that no processor saturates, layers that stay in float, what outliers cost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import CheckpointWriter
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.errors import CheckpointError, ConfigError, DataError
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import NumberFormat, int8, release
from onmt_llm.releasing.gptq import InputStatistics, round_rows
from onmt_llm.releasing.int8 import int8_rows

TOKENS = ["<s>", *tiny.tokens(24)[3:]]
AVX2 = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
"""Let Intel's and oneDNN's kernels compute as on a processor without VNNI."""
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp", "lm_head", "embed_tokens")


@pytest.mark.parametrize("columns", [40, 41])
def test_no_two_neighbours_overflow_16_bits(columns: int) -> None:
    matrix = np.random.default_rng(0).standard_t(3, size=(500, columns)).astype(np.float32)
    matrix[1], matrix[2] = 0, matrix[2] * 1e-38
    values, scales = (tensor.numpy() for tensor in int8_rows(torch.from_numpy(matrix.copy())))
    assert values.dtype == np.int8 and np.isfinite(scales).all() and not values[1].any()
    pairs = np.pad(values, ((0, 0), (0, columns % 2))).astype(np.int32).reshape(500, -1, 2)
    for sign in (1, -1):
        sums = np.maximum(sign * pairs, 0).sum(axis=-1)
        assert 255 * sums.max() < 2**15
    assert np.abs(values[3:]).max() > 63
    assert (np.abs(values / scales[:, None] - matrix) <= 0.5001 / scales[:, None]).all()


@pytest.mark.parametrize("quality", ["plain", "rotated"])
@pytest.mark.parametrize("tied", [False, True])
def test_layers_in_float_are_computed_in_float_by_stock_ctranslate2(tmp_path: Path, quality: Any, tied: bool) -> None:
    model = tiny.write_checkpoint(tmp_path / "m", tiny.llama(tie_embeddings=tied))
    ours = open_engine(model, device="cpu").logits(TOKENS)
    errors = []
    for number in range(len(LAYERS), 2, -1):
        directory = tmp_path / str(number)
        release(model, directory, quantization=NumberFormat("int8", quality, keep_float=LAYERS[:number]), verify="off")
        generator = ctranslate2.Generator(str(directory), compute_type="int8")
        errors.append(np.abs(np.array(generator.forward_batch([TOKENS]))[0] - ours).max())
    assert errors[0] < 1e-4 < 1e-2 < errors[-1]


def test_what_keep_float_refuses(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "m", tiny.llama())
    for names, message in ((["down_proy"], "did you mean 'down_proj'"), (["q_proj"], "must name all or none of")):
        with pytest.raises(ConfigError) as caught:
            release(model, tmp_path / "out", quantization=NumberFormat("int8", keep_float=names))
        assert message in f"{caught.value} {caught.value.hint}"
    for format, quantization in (("ctranslate2", "float16"), ("ctranslate2", None), ("safetensors", None)):
        with pytest.raises(ConfigError, match="keep_float: mlp must be left out without a quantization"):
            release(
                model,
                tmp_path / "out",
                format=format,
                quantization=NumberFormat(quantization, "rotated", keep_float=["mlp"]),
            )
    assert not (tmp_path / "out").exists()


def test_rounding_by_inputs_changes_outputs_less_and_overflows_nowhere() -> None:
    generator = torch.Generator().manual_seed(0)
    weight_RC = torch.randn(60, 301, generator=generator)
    weight_RC[:, 10:12] = 4.0
    x_TC = torch.randn(900, 40, generator=generator) @ torch.randn(40, 301, generator=generator)
    x_TC += 0.1 * torch.randn(900, 301, generator=generator)
    statistics = InputStatistics()
    for part in x_TC.split(250):
        statistics.add(part)
    errors = []
    for values, scales in (int8_rows(weight_RC.clone()), round_rows(weight_RC.clone(), statistics.factor())):
        pairs = torch.nn.functional.pad(values.int(), (0, 1)).unflatten(1, (-1, 2))
        assert max(sign.clamp(min=0).sum(dim=-1).max() for sign in (pairs, -pairs)) <= 128
        errors.append((x_TC @ (values / scales[:, None] - weight_RC).T).square().mean())
    assert errors[1] < 0.3 * errors[0]


def write_outlier_model(directory: Path) -> Path:
    """A model whose residual stream has a few channels that are 60 times as large as the others.

    They are made by the embedding, and the weights that read them are small, as in trained models.
    """
    model = tiny.llama(vocab_size=64, hidden_size=64, ffn_size=96, decoder_layers=2)
    network = tiny.build(model, seed=3)
    with CheckpointWriter(directory, CheckpointConfig(model=model)) as writer:
        for name, parameter in network.named_parameters():
            tensor = torch.ones(64) if "norm" in name else 0.25 * torch.randn_like(parameter)
            if name.endswith("embed_tokens.weight"):
                tensor[:, [5, 40]] = torch.tensor([15.0, -15.0])
            elif tensor.ndim == 2 and not name.endswith(("o_proj.weight", "down_proj.weight")):
                tensor[:, [5, 40]] *= 0.1
            writer.add(name, tensor)
        tiny.write_vocab(writer.directory / "vocab.txt", tiny.tokens(64))
    return directory


def text(seed: int, words: int) -> str:
    return " ".join(f"w{number}" for number in np.random.default_rng(seed).integers(0, 61, words))


def test_each_quality_loses_less_than_the_one_before(tmp_path: Path) -> None:
    model = write_outlier_model(tmp_path / "m")
    losses = []
    for number, quality in enumerate(("plain", "rotated", "calibrated")):
        calibration = text(1, 3000) if quality == "calibrated" else None
        numbers = NumberFormat("int8", quality, calibration)
        report = release(model, tmp_path / str(number), quantization=numbers, verify="warn", text=text(2, 2000))
        assert report["quality"] == quality
        losses.append(report["figures"]["mean_kl"])
    assert losses[1] < 0.7 * losses[0] and losses[2] < 0.9 * losses[1]


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_an_encoder_decoder_is_calibrated_on_its_translations(tmp_path: Path, norm_position: str) -> None:
    config = tiny.seq2seq(vocab_size=64, norm_position=norm_position, tie_embeddings=norm_position == "post")
    model = tiny.write_checkpoint(tmp_path / "m", config, tiny.tokens(64), scale=0.15)
    sentences, others = ("\n".join(text(seed, 9) for seed in seeds) for seeds in (range(150), range(200, 220)))
    losses = []
    for number, quality in enumerate(("plain", "calibrated")):
        numbers = NumberFormat("int8", quality, sentences if quality == "calibrated" else None)
        report = release(model, tmp_path / str(number), quantization=numbers, text=others)
        losses.append(report["figures"]["mean_abs_dlogp"])
    assert losses[1] < 0.9 * losses[0]


def test_what_calibration_refuses(tmp_path: Path) -> None:
    model = tiny.write_checkpoint(tmp_path / "m", tiny.llama(vocab_size=64), tiny.tokens(64))
    with pytest.raises(ConfigError, match="quality: calibrated and calibration_text need each other, but quality is"):
        release(model, tmp_path / "out", quantization=NumberFormat("int8", "calibrated"))
    with pytest.raises(ConfigError, match="quality is rotated with a text"):
        release(model, tmp_path / "out", quantization=NumberFormat("int8", "rotated", "w1"))
    with pytest.raises(DataError, match="calibrated on must have at least 1,024 tokens, but has 51"):
        release(model, tmp_path / "out", quantization=NumberFormat("int8", "calibrated", text(1, 50)))
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_weights_that_could_overflow_are_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.write_checkpoint(tmp_path / "m", tiny.llama(vocab_size=64), tiny.tokens(64))
    report = release(model, tmp_path / "good", quantization="int8", text=text(2, 100))
    assert 100 < report["figures"]["int8_neighbour_sum"] <= report["bounds"]["int8_neighbour_sum"] == 128
    assert report["int8_instructions"]
    monkeypatch.setattr(int8, "int8_scales", lambda matrix_RC: 127 / matrix_RC.abs().amax(dim=1))  # CTranslate2's own
    with pytest.raises(CheckpointError, match=r"int8_neighbour_sum is 2\d\d \(at most 128\)"):
        release(model, tmp_path / "out", quantization="int8", text=text(2, 100))


SATURATION = """
import sys, ctranslate2, numpy as np
np.save(sys.argv[2], np.array(ctranslate2.Generator(sys.argv[1], compute_type="int8").forward_batch([sys.argv[3:]])))
"""


def test_processors_without_vnni_compute_the_same(tmp_path: Path) -> None:
    """All weights and inputs are positive and large; in every second row the large neighbours are not added first."""
    model = tiny.llama(vocab_size=64, hidden_size=64, ffn_size=96)
    with CheckpointWriter(tmp_path / "m", CheckpointConfig(model=model)) as writer:
        for name, parameter in tiny.build(model).named_parameters():
            tensor = torch.ones_like(parameter)
            if parameter.ndim == 2 and "embed" not in name:
                tensor = 0.01 * tensor
                tensor[::2, ::4] = tensor[::2, 3::4] = 0.0001
            writer.add(name, tensor * torch.linspace(0.5, 1.5, len(parameter)).view(-1, *[1] * (parameter.ndim - 1)))
        tiny.write_vocab(writer.directory / "vocab.txt", tiny.tokens(64))
    release(tmp_path / "m", tmp_path / "ct2", quantization=NumberFormat("int8", "plain"), verify="off")
    found = []
    for number, limits in enumerate(({}, AVX2)):
        file = tmp_path / f"{number}.npy"
        command = [sys.executable, "-c", SATURATION, str(tmp_path / "ct2"), str(file), *TOKENS[:5]]
        subprocess.run(command, env={**os.environ, **limits}, check=True)
        found.append(np.load(file))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
