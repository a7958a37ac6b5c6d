"""`onmt_llm_eval perplexity` and the scores of `onmt_llm_translate -tgt`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import tiny
from onmt_llm.cli.eval import main as evaluate
from onmt_llm.cli.translate import main as translate
from onmt_llm.generate.open import open_engine
from onmt_llm.nn.transformer import Transformer
from onmt_llm.releasing import release

VOCAB = ["<unk>", "<s>", "</s>", *(chr(ord("a") + i) for i in range(21))]
LM = tiny.config(norm="rmsnorm", position="rotary")
SEQ2SEQ = tiny.seq2seq()
LINES = ["a b c", "", "d", "e f g h i j"]


def write_lines(path: Path, lines: list[str]) -> str:
    path.write_text("".join(f"{line}\n" for line in lines))
    return str(path)


@torch.no_grad()
def loss(model: Transformer, tgt: list[str], src: list[str] | None = None) -> float:
    """Summed loss of a target, computed from the full forward pass."""
    ids = [torch.tensor([[VOCAB.index(token) for token in tokens]]) for tokens in ([src] if src else []) + [tgt]]
    log_probs = model(*ids)[0].log_softmax(-1)
    return -sum(float(log_probs[i, ids[-1][0, i + 1]]) for i in range(len(tgt) - 1))


def figures(path: Path) -> list[list[float]]:
    return [[float(field) for field in line.split("\t")] for line in path.read_text().splitlines()]


def test_perplexity_of_texts_in_both_engines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.write_checkpoint(tmp_path / "lm", LM, VOCAB)
    release(model, tmp_path / "ct2", quantization="float32", text="a b c")
    source, output = write_lines(tmp_path / "src", LINES), tmp_path / "out"
    losses = [loss(open_engine(model).model, ["<s>", *line.split(), "</s>"]) if line else 0.0 for line in LINES]  # type: ignore[attr-defined]
    for name in ("lm", "ct2"):
        argv = ["perplexity", "-model", str(tmp_path / name), "-src", source, "-output", str(output)]
        assert evaluate(argv) == 0
        found = figures(output)
        assert [tokens for _, _, tokens in found] == [4, 0, 2, 7]
        assert [-log_prob for _, log_prob, _ in found] == pytest.approx(losses, abs=1e-4)
        assert found[0][0] == pytest.approx(math.exp(losses[0] / 4), rel=1e-4) and math.isnan(found[1][0])
        corpus = float(capsys.readouterr().out.split()[-1])
        assert corpus == pytest.approx(math.exp(sum(losses) / 13), rel=1e-4)


def test_perplexity_of_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.write_checkpoint(tmp_path / "seq2seq", SEQ2SEQ, VOCAB)
    source = write_lines(tmp_path / "src", LINES)
    target = write_lines(tmp_path / "tgt", ["b b", "c", "k l m n", ""])
    assert evaluate(["perplexity", "-model", str(model), "-src", source]) == 2
    assert "'tgt' must be given" in capsys.readouterr().err
    argv = ["perplexity", "-model", str(model), "-src", source, "-tgt", target, "-output", str(tmp_path / "out")]
    assert evaluate(argv) == 0
    assert figures(tmp_path / "out")[2][1] == pytest.approx(
        -loss(open_engine(model).model, ["<s>", *"klmn", "</s>"], ["d"]),  # type: ignore[attr-defined]
        abs=1e-4,
    )
    assert [tokens for _, _, tokens in figures(tmp_path / "out")] == [3, 0, 5, 1]


def test_translate_with_references_prefixes_and_alignments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.write_checkpoint(tmp_path / "seq2seq", SEQ2SEQ, VOCAB)
    source = write_lines(tmp_path / "src", LINES)
    target, output = write_lines(tmp_path / "tgt", ["b b", "c", "k l m n", "e"]), tmp_path / "out"
    base = ["-model", str(model), "-src", source, "-tgt", target, "-output", str(output), "-beam_size", "3"]
    assert translate([*base, "-with_score", "-n_best", "2"]) == 0
    rows = [line.split("\t") for line in output.read_text().splitlines()]
    assert len(rows) == 8 and rows[2] == ["", "0.000000", "0.000000"]
    gold = -loss(open_engine(model).model, ["<s>", *"klmn", "</s>"], ["d"])  # type: ignore[attr-defined]
    assert float(rows[4][2]) == float(rows[5][2]) == pytest.approx(gold, abs=1e-4)
    assert translate([*base, "-tgt_file_prefix", "-report_align", "-min_length", "2"]) == 0
    lines = output.read_text().splitlines()
    for line, text, prefix in zip(lines, LINES, ["b b", None, "k l m n", "e"], strict=True):
        answer, _, pairs = line.partition(" |||")
        if prefix is not None:
            assert answer.startswith(prefix)
            places = [tuple(map(int, pair.split("-"))) for pair in pairs.split()]
            assert sorted(tgt for _, tgt in places) == list(range(len(answer.split())))
            assert all(src < len(text.split()) for src, _ in places) and places == sorted(places)


def test_an_ensemble_averages_probabilities_or_their_logarithms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [tiny.write_checkpoint(tmp_path / f"{seed}", SEQ2SEQ, VOCAB, seed=seed) for seed in range(2)]
    sequence, source = ["<s>", *"abc"], [list("de")]
    single = [torch.tensor(open_engine(model).logits(sequence, source=source[0])).log_softmax(-1) for model in models]
    for average, mean in (
        (False, torch.stack(single).mean(0).log_softmax(-1)),
        (True, torch.stack(single).exp().mean(0).log()),
    ):
        ensemble = open_engine(models, average_probabilities=average)
        expected = [float(mean[i, VOCAB.index(token)]) for i, token in enumerate(sequence[1:])]
        assert ensemble.score([sequence], sources=source)[0] == pytest.approx(expected, abs=1e-4)
    other = tiny.write_checkpoint(tmp_path / "lm", LM, VOCAB)
    argv = ["-model", str(models[0]), str(other), "-src", write_lines(tmp_path / "src", LINES)]
    assert translate(argv) == 2 and "of one kind and vocabulary" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["-report_align"], ["-coverage_penalty", "wu", "-beta", "0.2"], ["-replace_unk"]])
def test_a_language_model_has_no_source_to_attend_to(
    tmp_path: Path, option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny.write_checkpoint(tmp_path / "lm", LM, VOCAB)
    source = write_lines(tmp_path / "src", LINES)
    assert translate(["-model", str(model), "-src", source, "-output", str(tmp_path / "out"), *option]) == 2
    assert "only an encoder-decoder model attends to a source" in capsys.readouterr().err
