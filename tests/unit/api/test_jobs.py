"""`train`, `load_config`, `build_vocab`, `convert` and `release`: what they take, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import onmt_llm
from onmt_llm.cli import convert as convert_command
from onmt_llm.cli import release as release_command
from onmt_llm.cli import train as train_command


def test_train_takes_a_file_a_dict_or_a_configuration(folder: Path, tmp_path: Path) -> None:
    configs = [folder / "run.yaml", yaml.safe_load(Path("run.yaml").read_text()), onmt_llm.load_config("run.yaml")]
    options = {"train_steps": 2, "seed": 1}
    results = [onmt_llm.train(c, save_model=tmp_path / str(i) / "m", **options) for i, c in enumerate(configs)]
    assert [result.checkpoint for result in results] == [tmp_path / str(i) / "m_step_2" for i in range(3)]
    assert len({onmt_llm.Checkpoint.open(str(result.checkpoint)).fingerprint for result in results}) == 1


def test_options_may_stand_in_sections_as_in_a_file() -> None:
    assert onmt_llm.load_config("run.yaml", run={"seed": 3}).run.seed == 3


def test_a_configuration_survives_being_given_back() -> None:
    config = onmt_llm.load_config("run.yaml", transforms=["filtertoolong"], src_seq_length=7, rope={"theta": 5.0})
    again = onmt_llm.load_config(config)
    assert again == config
    assert again.corpora.transform_options == config.corpora.transform_options
    assert onmt_llm.load_config(config, src_seq_length=8) != config


def test_a_configuration_shows_what_was_set() -> None:
    shown = repr(onmt_llm.load_config("run.yaml", train_steps=5))
    assert "train_steps=5" in shown and "run/model" in shown
    assert "learning_rate" not in shown


def test_a_model_is_converted_there_and_back(tmp_path: Path) -> None:
    written = onmt_llm.convert("llama", tmp_path / "hf", to="hf")
    assert written == tmp_path / "hf"
    back = onmt_llm.convert(model_dir=written, output=str(tmp_path / "back"), source="hf")
    first, again = (onmt_llm.Checkpoint.open(path) for path in ("llama", back))
    assert {name: again.shape(name) for name in again.names()} == {name: first.shape(name) for name in first.names()}
    with pytest.raises(onmt_llm.CheckpointError, match="exists already"):
        onmt_llm.convert(written, back)
    onmt_llm.convert(written, back, force=True)


def test_a_release_answers_as_its_model(tmp_path: Path) -> None:
    (tmp_path / "release.yaml").write_text("model: llama\nverify: warn\n")
    report = onmt_llm.release(output=tmp_path / "release", config=tmp_path / "release.yaml")
    assert report["verdict"] == "pass"
    engines = [onmt_llm.open_engine(path) for path in ("llama", tmp_path / "release")]
    assert len({engine.ask("Hello", max_length=5) for engine in engines}) == 1


def test_vocabularies_are_built(tmp_path: Path) -> None:
    files = onmt_llm.build_vocab("run.yaml", src_vocab=tmp_path / "vocab.txt", n_sample=-1)
    assert list(files) == [tmp_path / "vocab.txt"]
    with pytest.raises(onmt_llm.ConfigError, match=r"n_sampel.*did you mean 'n_sample'"):
        onmt_llm.build_vocab("run.yaml", n_sampel=-1)


def test_a_log_file_is_written(tmp_path: Path) -> None:
    onmt_llm.train("run.yaml", train_steps=1, save_model=tmp_path / "m", log_file=tmp_path / "train.log")
    assert "Step 1/1" in (tmp_path / "train.log").read_text()


TRAIN, CONVERT, RELEASE = (
    (onmt_llm.train, train_command),
    (onmt_llm.convert, convert_command),
    (onmt_llm.release, release_command),
)
WRONG: list[tuple[Any, dict[str, Any]]] = [
    (TRAIN, {"train_stepz": 5}),
    (TRAIN, {"train_steps": "many"}),
    (TRAIN, {"data": {"letters": {"path_src": "nowhere.txt"}}}),
    (TRAIN, {"train_from": "nowhere"}),
    (CONVERT, {"model_dir": "llama", "output": "out", "dtyp": "bf16"}),
    (CONVERT, {"model_dir": "llama", "output": "out", "to": "hff"}),
    (CONVERT, {"model_dir": "nowhere", "output": "out"}),
    (CONVERT, {"model_dir": "llama"}),
    (CONVERT, {"model_dir": "words", "output": "out", "to": "hf"}),
    (RELEASE, {"model": "llama", "output": "out", "quantisation": "int8"}),
    (RELEASE, {"model": "nowhere", "output": "out"}),
    (RELEASE, {"model": "llama", "output": "out", "format": "pytorch", "quantization": "int8"}),
]


@pytest.mark.parametrize(
    ("what", "options"),
    WRONG,
    ids=lambda value: next(reversed(value)) if isinstance(value, dict) else value[0].__name__,
)
def test_a_wrong_argument_gets_the_sentence_of_the_command(
    what: tuple[Callable[..., Any], Any], options: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    function, command = what
    base = {"config": "run.yaml"} if function is onmt_llm.train else {}
    with pytest.raises(onmt_llm.OnmtLlmError) as error:
        function(**base, **options)
    file = tmp_path / "options.yaml"
    file.write_text(yaml.safe_dump(options))
    words = [word for config in (*base.values(), str(file)) for word in ("-config", config)]
    assert command.main(words) == error.value.exit_code
    assert error.value.message in capsys.readouterr().err.replace(f"{file}:1  ", "")


def test_what_is_no_configuration_is_refused() -> None:
    with pytest.raises(onmt_llm.ConfigError, match="must be the path of a YAML file, or a dict"):
        onmt_llm.train(5)  # type: ignore[arg-type]
    with pytest.raises(onmt_llm.ConfigError, match=r"must exist, but run.yml does not"):
        onmt_llm.train("run.yml")
