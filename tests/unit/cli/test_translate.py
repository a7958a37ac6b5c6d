"""`onmt_llm_translate`: where answers go, what is logged, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import tiny
from onmt_llm.cli.translate import main

LINES = ["w0 w1", "", "w2"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    return str(tiny.write_checkpoint(tmp_path / "model", tiny.seq2seq()))


@pytest.fixture
def source(tmp_path: Path) -> str:
    return str(tiny.write_vocab(tmp_path / "src", LINES))


def words(model: str, source: str, *more: str) -> list[str]:
    return ["-model", model, "-src", source, "-device", "cpu", "-max_length", "4", *more]


def test_answers_go_to_standard_output(model: str, source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words(model, source, "-output", "-", "-n_best", "2", "-beam_size", "2", "-with_score")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(LINES) and lines[2] == lines[3] == "\t0.000000"
    assert all(float(line.split("\t")[1]) <= 0 for line in lines)


def test_verbose_logs_answers_alignments_and_references(
    model: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.cli.run.setup_logging", lambda **_: None)
    target = tiny.write_vocab(tmp_path / "tgt", ["w3", "w4", "w5"])
    more = ("-tgt", str(target), "-output", str(tmp_path / "out"), "-verbose", "-report_align", "-min_length", "1")
    with caplog.at_level(logging.INFO, logger="onmt_llm"):
        assert main(words(model, source, *more)) == 0
    logged = "\n".join(caplog.messages)
    assert "1  w0 w1" in logged and "    align " in logged
    assert logged.count("    gold ") == 3 and "PRED SCORE: " in logged and "GOLD PPL: " in logged
    assert "3 answers to 3 inputs written to" in logged


@pytest.mark.parametrize(("limit", "cut"), [("-max_length", 2), ("-max_length_ratio", 2)])
def test_answers_that_are_cut_are_counted(
    model: str, source: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, limit: str, cut: int
) -> None:
    monkeypatch.setattr("onmt_llm.cli.run.setup_logging", lambda **_: None)
    value = {"-max_length": "2", "-max_length_ratio": "0.01"}[limit]
    assert main(["-model", model, "-src", source, "-output", "-", "-min_length", "2", limit, value]) == 0
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith(f"{cut} of 3 answers were cut") and limit[1:] in said


def test_unknown_tokens_are_replaced_by_the_phrase_table(model: str, source: str, tmp_path: Path) -> None:
    table = tiny.write_vocab(tmp_path / "table", ["w0|||eins", "w1|||zwei", "w2|||drei"])
    prefixes, output = tiny.write_vocab(tmp_path / "tgt", ["odd", "", "odd"]), tmp_path / "out"
    more = ("-tgt", str(prefixes), "-tgt_file_prefix", "-replace_unk", "-phrase_table", str(table))
    assert main(words(model, source, *more, "-output", str(output))) == 0
    first, empty, last = output.read_text().splitlines()
    assert first.split()[0] in ("eins", "zwei") and not empty and last.split()[0] == "drei"


@pytest.mark.parametrize(
    ("more", "code", "sentence"),
    [
        (("-tgt_file_prefix",), 2, "'tgt' must be given with tgt_file_prefix"),
        (("-tgt", "two"), 3, "tgt must have a line for each of the 3 inputs, but two has 2"),
        (("-phrase_table", "two"), 3, "A line of a phrase table must be source|||target, but two:1"),
        (("-report_align", "-transforms", "docify"), 2, "`report_align` must not be given where `transforms` joins"),
        (("-template", "chatml"), 4, "tokens of the checkpoint's chat template 'chatml' must be in its vocabulary"),
        (("-src", "nowhere"), 3, "'src' must be a file that exists, but 'nowhere' is not"),
    ],
)
def test_what_is_refused(
    model: str,
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_vocab(tmp_path / "two", ["w1", "w2"])
    assert main([*words(model, source, "-output", "out"), *more]) == code
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
