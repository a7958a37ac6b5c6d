"""`release`: formats, refusals, verification, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from onmt_llm.checkpoint.store import Checkpoint, CheckpointWriter
from onmt_llm.cli.checkpoint import main as checkpoint_command
from onmt_llm.config.checkpoint import AdapterSpec, CheckpointConfig
from onmt_llm.config.model import ModelConfig
from onmt_llm.errors import CheckpointError, ConfigError, UnsupportedError
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing import ctranslate2, plain, release, verify
from onmt_llm.releasing.ct2_spec import oversized

VOCAB = tiny.tokens(64)
TEXT = " ".join(VOCAB[3 + (7 * i) % 61] for i in range(80))
LLAMA = tiny.llama(vocab_size=64, hidden_size=64, ffn_size=96, tie_embeddings=True)


def write_checkpoint(directory: Path, config: ModelConfig = LLAMA, *, scale: float = 0.2, **changes: Any) -> Path:
    return tiny.write_checkpoint(directory, config, VOCAB, seed=1, scale=scale, **changes)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def content(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


@pytest.mark.parametrize("quantization", list(verify.BOUNDS))
def test_every_quantization_passes_its_bounds_and_leaves_the_checkpoint_alone(
    model: Path, tmp_path: Path, quantization: str
) -> None:
    before = content(model)
    report = release(model, tmp_path / "out", quantization=quantization, text=TEXT)
    assert report == json.loads((tmp_path / "out" / "release_report.json").read_text())
    assert report["verdict"] == "pass"
    if quantization != "int16":  # which only some processors run as it is
        assert report["compute_type"] == ("int8_float32" if quantization.startswith("int8") else "float32")
    figures = report["figures"]
    assert figures["n_tokens"] == 81
    assert figures["perplexity_ratio"] == pytest.approx(1, abs=0.05)
    assert 0 < figures["max_abs_dlogit"] < 2
    assert content(model) == before


def test_the_file_sizes_are_those_of_the_number_formats(model: Path, tmp_path: Path) -> None:
    sizes = {}
    for quantization in ("float32", "float16", "int8"):
        release(model, tmp_path / quantization, quantization=quantization, verify="off")
        sizes[quantization] = (tmp_path / quantization / "model.bin").stat().st_size
    assert sizes["float16"] < 0.55 * sizes["float32"] and sizes["int8"] < 0.35 * sizes["float32"]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_checkpoints_are_released_exactly(tmp_path: Path, dtype: Any) -> None:
    checkpoint = write_checkpoint(tmp_path / "model", LLAMA.model_copy(update={"dtype": dtype}))
    report = release(checkpoint, tmp_path / "out", text=TEXT)
    assert report["reference_dtype"] == "fp32" and report["figures"]["max_abs_dlogit"] < 1e-4


def test_a_release_carries_all_that_an_engine_needs(model: Path, tmp_path: Path) -> None:
    release(model, tmp_path / "out", text=TEXT)
    names = set(content(tmp_path / "out"))
    assert {
        "model.bin",
        "config.json",
        "vocabulary.json",
        "config.yaml",
        "vocab.txt",
        "release_report.json",
        "README.md",
    } == names - {"manifest.json"}
    model_config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (model_config["bos_token"], model_config["eos_token"], model_config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_the_bundled_text_is_long_enough_for_every_tokenizer(model: Path, tmp_path: Path) -> None:
    assert 1000 < release(model, tmp_path / "out")["figures"]["n_tokens"] < 3000


def damage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the spec with another rotary base, as the stock converter silently does."""
    build = ctranslate2.build_spec
    rope = LLAMA.rope.model_copy(update={"theta": 50.0})
    monkeypatch.setattr(ctranslate2, "build_spec", lambda config: build(config.model_copy(update={"rope": rope})))


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_strict_publishes_nothing_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    model = write_checkpoint(tmp_path / "model", scale=0.5)
    damage(monkeypatch)
    with pytest.raises(CheckpointError, match=r"(max_abs_dlogit|mean_kl) is .* \(at most .*Nothing was published"):
        release(model, tmp_path / "out", quantization=quantization, text=TEXT)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_texts_longer_than_the_window_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    window = LLAMA.model_copy(update={"sliding_window": 20})
    model = write_checkpoint(tmp_path / "model", window, scale=0.5)
    report = release(model, tmp_path / "out", text=TEXT)
    assert report["figures"]["n_tokens"] == 81
    assert "not_compared" not in report
    build = ctranslate2.build_spec
    monkeypatch.setattr(
        ctranslate2, "build_spec", lambda config: build(config.model_copy(update={"sliding_window": None}))
    )
    with pytest.raises(CheckpointError, match="max_abs_dlogit is"):
        release(model, tmp_path / "without", text=TEXT)


def test_a_window_that_no_text_fills_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    window = LLAMA.model_copy(update={"sliding_window": 100})
    report = release(write_checkpoint(tmp_path / "model", window), tmp_path / "out", text=TEXT)
    (sentence,) = report["not_compared"]
    assert "the compared ones have at most 81" in sentence and sentence in caplog.text


def test_warn_and_off_publish_and_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = write_checkpoint(tmp_path / "model", scale=0.5)
    damage(monkeypatch)
    assert release(model, tmp_path / "warned", verify="warn", text=TEXT)["verdict"] == "fail"
    assert "exceeds its bounds" in caplog.text
    assert release(model, tmp_path / "unseen", verify="off")["verdict"] == "not verified"
    assert open_engine(tmp_path / "unseen", device="cpu").logits(["<s>", "w1"]).shape == (2, 64)


def test_what_is_not_a_number_is_beyond_every_bound() -> None:
    broken = verify.Comparison()
    broken.add(np.zeros((2, 4), dtype=np.float32), np.full((2, 4), np.nan, dtype=np.float32), [0, 1])
    assert (
        len(
            verify.exceeded_bounds(broken.figures(), {"max_abs_dlogit": 1e-3, "mean_kl": 0.1, "perplexity_ratio": 1.05})
        )
        == 3
    )


def test_the_figures_are_right() -> None:
    ours = np.log(np.array([[0.5, 0.5], [0.9, 0.1]], dtype=np.float32))
    theirs = np.log(np.array([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)) + 3
    comparison = verify.Comparison()
    comparison.add(ours, theirs, [0, 1])
    figures = comparison.figures()
    assert figures["mean_kl"] == pytest.approx((0.5 * np.log(2) + 0.5 * np.log(0.5 / 0.75)) / 2, rel=1e-5)
    assert figures["perplexity_model"] == pytest.approx(2) and figures["perplexity_release"] == pytest.approx(4 / 3)
    assert figures["top1_agreement"] == 0.5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"position": "none"}, "position is none"),
        ({"position": "t5", "relative_shared": True}, "position is t5 without an encoder"),
    ],
)
def test_what_the_format_cannot_express_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    model = write_checkpoint(tmp_path / "model", LLAMA.model_copy(update=changes))
    with pytest.raises(UnsupportedError, match=named):
        release(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_matrix_that_the_file_format_cannot_hold_is_an_obstacle() -> None:
    config = ModelConfig(vocab_size=2**20, hidden_size=2**11)
    assert "8,589,934,592 bytes in float32" in str(oversized(config, "float32"))
    assert oversized(config, "int8") is None


def test_a_vocabulary_longer_than_the_embedding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has 64 tokens for 50 rows"):
        release(write_checkpoint(tmp_path / "model", LLAMA.model_copy(update={"vocab_size": 50})), tmp_path / "out")


def test_an_adapter_is_refused_with_the_command_that_merges_it(tmp_path: Path) -> None:
    spec = AdapterSpec(rank=2, alpha=4, layers=["q_proj"], base="somewhere/base", base_fingerprint="0")
    config = CheckpointConfig(model=LLAMA, adapter=spec)
    with CheckpointWriter(tmp_path / "adapter", config) as writer:
        writer.add("decoder.layers.0.self_attn.q_proj.lora_a", torch.zeros(2, 64))
        writer.add("decoder.layers.0.self_attn.q_proj.lora_b", torch.zeros(64, 2))
    with pytest.raises(CheckpointError, match="unmerged LoRA adapter") as caught:
        release(tmp_path / "adapter", tmp_path / "out")
    merged = tmp_path / "adapter.merged"
    assert caught.value.hint == (
        "merge it first: onmt_llm_lora --action merge --base_model somewhere/base "
        f"--lora_weights {tmp_path / 'adapter'} --output {merged}"
    )


def test_an_output_is_replaced_by_force_only(model: Path, tmp_path: Path) -> None:
    for format in ("ctranslate2", "safetensors", "pytorch"):
        output = tmp_path / format
        release(model, output, format=format, verify="off")
        with pytest.raises(CheckpointError, match="exists already"):
            release(model, output, format=format, verify="off")
        release(model, output, format=format, verify="off", force=True)
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "diary.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        release(model, stranger, verify="off", force=True)
    assert (stranger / "diary.txt").read_text() == "mine"


def test_safetensors_is_the_checkpoint_without_its_training_state(model: Path, tmp_path: Path) -> None:
    (model / "train_state").mkdir()
    (model / "train_state" / "optimizer.bin").write_bytes(b"0" * 100)
    assert release(model, tmp_path / "out", format="safetensors")["verdict"] == "pass"
    assert Checkpoint.open(tmp_path / "out").fingerprint == Checkpoint.open(model).fingerprint
    assert not (tmp_path / "out" / "train_state").exists()
    assert (tmp_path / "out" / "vocab.txt").read_bytes() == (model / "vocab.txt").read_bytes()


def test_safetensors_that_differ_do_not_replace_a_release(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release(model, tmp_path / "out", format="safetensors")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    monkeypatch.setattr(plain, "find_damage", lambda path, thorough: ["vocab.txt differs"])
    with pytest.raises(CheckpointError, match=r"vocab\.txt differs"):
        release(model, tmp_path / "out", format="safetensors", force=True)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


def test_pytorch_is_one_file_of_plain_tensors(model: Path, tmp_path: Path) -> None:
    assert release(model, tmp_path / "model.pt", format="pytorch")["verdict"] == "pass"
    read = torch.load(tmp_path / "model.pt", weights_only=True)
    rebuilt = Transformer(ModelConfig(**read["config"]["model"])).eval()
    rebuilt.load_state_dict(read["model"])
    engine = open_engine(model, device="cpu")
    ids = torch.tensor([engine.codec.vocab.ids(["<s>", "w5"])])
    np.testing.assert_allclose(rebuilt(ids)[0].detach().numpy(), engine.logits(["<s>", "w5"]), atol=1e-5)
    assert read["vocab"] == VOCAB
    assert bytes(read["files"]["vocab.txt"].tolist()) == (model / "vocab.txt").read_bytes()


def test_a_flipped_byte_of_a_pytorch_release_is_found(model: Path, tmp_path: Path) -> None:
    release(model, tmp_path / "model.pt", format="pytorch")
    words = ["verify", "-model", str(tmp_path / "model.pt")]
    assert checkpoint_command(words) == 0
    content = (tmp_path / "model.pt").read_bytes()
    pieces = torch.load(tmp_path / "model.pt", weights_only=True)
    name = "decoder.layers.0.mlp.up_proj.weight"
    for part in (pieces["model"][name].numpy().tobytes(), b"w17", b"<unk>\n"):
        flipped = bytearray(content)
        flipped[content.index(part)] ^= 1
        (tmp_path / "model.pt").write_bytes(flipped)
        assert checkpoint_command(words) == 4
    torch.save(pieces["model"], tmp_path / "model.pt")
    assert checkpoint_command(words) == 4


def test_wrong_words_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'ctranslate2'"):
        release(model, tmp_path / "out", format="ctranslate")
    with pytest.raises(ConfigError, match="quantization must be one of"):
        release(model, tmp_path / "out", quantization="int4")
    with pytest.raises(ConfigError, match="quantization must be left out"):
        release(model, tmp_path / "out", format="safetensors", quantization="int8")
