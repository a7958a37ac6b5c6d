"""`onmt_llm_translate`: where answers go, what is logged, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.cli import translate
from onmt_llm.cli.lines.answers import answer_chunk
from onmt_llm.cli.translate import main
from onmt_llm.releasing import release

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


def test_a_prefix_of_the_options_starts_all_answers_and_is_removed(model: str, source: str, tmp_path: Path) -> None:
    def answers(*more: str) -> list[str]:
        file = tmp_path / "out"
        assert (
            main(words(model, source, *more, "-output", str(file), "-max_length_ratio", "0", "-max_length", "6")) == 0
        )
        return file.read_text().splitlines()

    prefixes = tiny.write_vocab(tmp_path / "prefixes", ["w3 w4"] * 3)
    whole = answers("-tgt", str(prefixes), "-tgt_file_prefix")
    alone = answers("-tgt_file_prefix", "-transforms", "prefix", "-tgt_prefix", "w3 w4")
    assert all(line.startswith("w3 w4") for line in whole if line)
    assert alone == [line.removeprefix("w3 w4").strip() for line in whole] != answers()
    second = tiny.write_vocab(tmp_path / "second", ["w4"] * 3)
    both = answers("-tgt", str(second), "-tgt_file_prefix", "-transforms", "prefix", "-tgt_prefix", "w3")
    assert both == [line.removeprefix("w3").strip() for line in whole]


def test_a_prefix_that_the_model_does_not_know_is_a_warning(
    model: str, source: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onmt_llm.cli.run.setup_logging", lambda **_: None)
    output = ("-output", str(tmp_path / "out"), "-transforms", "prefix")
    for prefix, said in (("w3", False), ("｟fr｠", True)):
        caplog.clear()
        assert main(words(model, source, *output, "-src_prefix", prefix)) == 0
        assert said == any("put in ｟fr｠" in record.message for record in caplog.records)


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


class Killed(BaseException):
    """Stands for anything that ends the process."""


def with_chunks_of(lines: int, monkeypatch: pytest.MonkeyPatch, *, fatal: int = 0) -> None:
    """Answer so many lines together; the process dies after answering the `fatal`-th chunk, before it is written."""

    calls = count(1)

    def answer(*args: Any) -> Any:
        found = answer_chunk(*args)
        if next(calls) == fatal:
            raise Killed
        return found

    monkeypatch.setattr(translate, "chunk_lines", lambda *_: lines)
    monkeypatch.setattr(translate, "answer_chunk", answer)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, inputs, references, and a phrase table."""
    folder = tmp_path_factory.mktemp("resume")
    checkpoint = tiny.write_checkpoint(folder / "torch", tiny.seq2seq(), scale=0.5)
    release(checkpoint, folder / "ct2", text="w1 w2 w3")
    tiny.write_checkpoint(folder / "lm", tiny.llama(), scale=0.5)
    tiny.write_vocab(folder / "src", ["w1 w2", "odd w3", "", *(f"w{i} w{i + 1} w{i + 2}" for i in range(8))])
    tiny.write_vocab(folder / "tgt", [f"w{i} w3" for i in range(11)])
    tiny.write_vocab(folder / "table", ["odd|||seltsam"])
    return folder


def assert_same(file: Path, other: Path) -> None:
    """Compare outputs; the last digits of scores depend on what else is in a batch."""
    for line, expected in zip(file.read_text().splitlines(), other.read_text().splitlines(), strict=True):
        text, *scores = line.split("\t")
        wanted, *numbers = expected.split("\t")
        assert text == wanted
        assert list(map(float, scores)) == pytest.approx(list(map(float, numbers)), abs=1e-4)


COMBINATIONS = [
    "-model torch -n_best 2 -beam_size 3 -with_score -tgt tgt",
    "-model torch -tgt tgt -tgt_file_prefix -replace_unk -phrase_table table",
    "-model torch -report_align -beam_size 2 -verbose",
    "-model torch -random_sampling_topk 0 -seed 5 -n_best 2 -with_score",
    "-model torch -random_sampling_topk 0 -random_sampling_temp 2 -transforms docify -max_context 2 -seed 5",
    "-model lm -random_sampling_topk 4 -seed 0 -tgt tgt -with_score",
    "-model ct2 -beam_size 2 -n_best 2 -with_score -tgt tgt",
    "-model ct2 -report_align",
    "-model ct2 -transforms docify",
]


@pytest.mark.parametrize("words", COMBINATIONS)
def test_neither_chunks_nor_an_interruption_change_answers_scores_or_the_log(
    folder: Path, words: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("onmt_llm.cli.run.setup_logging", lambda **_: None)
    caplog.set_level(logging.INFO, logger="onmt_llm")
    arguments = f"{words} -src src -device cpu -threads 1 -max_length 6 -output".split()

    def summary() -> list[str]:
        found = [line for line in caplog.messages if "SCORE" in line or "were cut" in line or "answers to" in line]
        caplog.clear()
        return [re.sub("written to .*|PPL: [0-9.]+", "", line) for line in found]

    assert main([*arguments, "whole"]) == 0
    expected = summary()
    assert len(expected) >= 3
    for lines, fatal in ((1, 0), (4, 2)):
        with_chunks_of(lines, monkeypatch, fatal=fatal)
        if fatal:
            with pytest.raises(Killed):
                main([*arguments, "parts"])
            assert (folder / "parts.partial").exists() == (fatal > 1)
        with_chunks_of(lines + 1, monkeypatch)
        assert main([*arguments, "parts"]) == 0
        assert_same(folder / "parts", folder / "whole")
        if not fatal:
            assert summary() == expected
        (folder / "parts").unlink()
        caplog.clear()
    assert not list(folder.glob("parts*"))


def test_totals_go_on_too(folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("onmt_llm.cli.run.setup_logging", lambda **_: None)
    caplog.set_level(logging.INFO, logger="onmt_llm")
    arguments = [
        "-model",
        "torch",
        "-src",
        "src",
        "-tgt",
        "tgt",
        "-max_length",
        "3",
        "-min_length",
        "3",
        "-output",
        "out",
    ]
    with_chunks_of(4, monkeypatch, fatal=3)
    with pytest.raises(Killed):
        main(arguments)
    with_chunks_of(4, monkeypatch)
    assert main(arguments) == 0
    logged = "\n".join(caplog.messages)
    assert "What is done is kept in " in logged and "8 lines are answered already: resuming after them." in logged
    assert "GOLD PPL" in logged and "NB SENTENCES: 11" in logged and "10 of 11 answers were cut" in logged
    assert "11 answers to 11 inputs written to out" in logged


def test_a_seed_that_was_drawn_is_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    free = [
        "-model",
        "torch",
        "-src",
        "src",
        "-max_length",
        "6",
        "-random_sampling_topk",
        "0",
        "-random_sampling_temp",
        "3",
        "-output",
        "drawn",
    ]
    with_chunks_of(4, monkeypatch, fatal=3)
    with pytest.raises(Killed):
        main(free)
    seed = json.loads((folder / "drawn.partial.json").read_text())["state"]["seed"]
    assert main(free) == 0
    assert main([*free[:-1], "again", "-seed", str(seed)]) == 0
    assert (folder / "drawn").read_text() == (folder / "again").read_text()


def test_ctranslate2_draws_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    drawn = [
        "-model",
        "ct2",
        "-src",
        "src",
        "-max_length",
        "6",
        "-random_sampling_topk",
        "0",
        "-seed",
        "3",
        "-threads",
        "1",
        "-output",
        "out2",
    ]
    with_chunks_of(4, monkeypatch, fatal=2)
    with pytest.raises(Killed):
        main(drawn)
    with_chunks_of(4, monkeypatch)
    assert main(drawn) == 0
    assert "CTranslate2 cannot continue sampled answers exactly" in capsys.readouterr().err
    once = (folder / "out2").read_text()
    assert main(drawn) == 0 and (folder / "out2").read_text() == once and len(once.splitlines()) == 11


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        ("-beam_size 2", 2, "'beam_size' was 1 for them and is 2 now"),
        ("-model lm", 2, "'model' was ['content "),
        ("-tgt tgt", 2, "'tgt' was None for them and is 'given' now"),
        ("-tgt tgt -with_score", 2, "must be of the same command"),
        ("-src other", 3, "src must begin with the 8 lines that are answered already, but they are others now"),
        ("-src short", 3, "src must begin with the 8 lines that are answered already"),
    ],
)
def test_another_command_does_not_go_on(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: str,
    code: int,
    sentence: str,
) -> None:
    monkeypatch.chdir(folder)
    tiny.write_vocab(folder / "other", ["w9", *(folder / "src").read_text().splitlines()[1:]])
    tiny.write_vocab(folder / "short", (folder / "src").read_text().splitlines()[:5])
    arguments = ["-model", "torch", "-src", "src", "-max_length", "6", "-output", "out3"]
    with_chunks_of(4, monkeypatch, fatal=3)
    with pytest.raises(Killed):
        main(arguments)
    left = (folder / "out3.partial").read_bytes()
    assert main([*arguments, *change.split()]) == code
    said = capsys.readouterr().err
    assert sentence in said and "-resume false starts again" in said
    assert (folder / "out3.partial").read_bytes() == left
    with_chunks_of(4, monkeypatch)
    assert main([*arguments, *change.split(), "-resume", "false"]) == 0
    assert not list(folder.glob("out3.*"))


def test_lines_that_were_appended_are_answered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines = (folder / "src").read_text().splitlines()
    tiny.write_vocab(folder / "growing", lines)
    arguments = ["-model", "torch", "-max_length", "6", "-src", "growing", "-output", "out4"]
    with_chunks_of(4, monkeypatch, fatal=3)
    with pytest.raises(Killed):
        main(arguments)
    with_chunks_of(4, monkeypatch)
    tiny.write_vocab(folder / "growing", [*lines, "w7"])
    assert main(arguments) == 0
    assert len((folder / "out4").read_text().splitlines()) == len(lines) + 1


def test_a_file_of_partial_answers_must_not_be_an_input(
    model: str, source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "src"
    Path(source).rename(tmp_path / "src.partial")
    assert main(words(model, f"{source}.partial", "-output", str(output))) == 2
    assert "'output' must not replace an input" in capsys.readouterr().err
