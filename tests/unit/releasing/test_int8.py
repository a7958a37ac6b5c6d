"""Int8 releases: rows that no processor saturates, layers that stay in float, what outliers cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import pytest

import tiny
from onmt_llm.errors import ConfigError
from onmt_llm.generate.open import open_engine
from onmt_llm.releasing import NumberFormat, release
from onmt_llm.releasing.int8 import int8_rows

TOKENS = ["<s>", *tiny.tokens(24)[3:]]
LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "mlp", "lm_head", "embed_tokens")


@pytest.mark.parametrize("columns", [40, 41])
def test_no_two_neighbours_overflow_16_bits(columns: int) -> None:
    matrix = np.random.default_rng(0).standard_t(3, size=(500, columns)).astype(np.float32)
    matrix[1], matrix[2] = 0, matrix[2] * 1e-38
    values, scales = int8_rows(matrix.copy())
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
        release(model, directory, quantization=NumberFormat("int8", quality, LAYERS[:number]), verify="off")
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
        with pytest.raises(ConfigError, match="quality: rotated and keep_float: mlp must go with a quantization"):
            release(model, tmp_path / "out", format=format, quantization=NumberFormat(quantization, "rotated", ["mlp"]))
    assert not (tmp_path / "out").exists()
