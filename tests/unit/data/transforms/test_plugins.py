"""Transforms of the user's own (`plugins:`), and per-corpus options."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import pytest

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.build import build_transforms
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.errors import ConfigError
from onmt_llm.registry import load_plugins
from onmt_llm.text.segment import Segment
from tiny_codecs import make_context

HOW_TO = Path(__file__).parents[4] / "docs" / "how-to" / "transforms.md"
PLUGIN = HOW_TO.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]

CONFIG = """
plugins: [{plugin}]
transforms: [shout]
marks: 2
data:
  loud:
    path_src: a.txt
    marks: 3
  other:
    path_src: a.txt
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "shouting_plugin.py"
    file.write_text(PLUGIN)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(TRANSFORMS, "_items", dict(TRANSFORMS._items))
    monkeypatch.delitem(sys.modules, "shouting_plugin", raising=False)
    return file


def shouted(loaded, corpus: str) -> str | None:
    config = loaded.job.corpora
    names = config.data[corpus].transforms or config.transforms
    transforms = build_transforms(names, loaded.options, config.data[corpus], make_context())
    (example,) = transforms[0].batch([Example([Segment("hey")])])
    return example.src[0].text


def test_a_transform_has_the_name_under_which_it_is_registered(plugin: Path) -> None:
    load_plugins([str(plugin)])
    assert {TRANSFORMS.get(name).name for name in TRANSFORMS} == {*TRANSFORMS}
    assert "shout" in TRANSFORMS


def test_a_file_adds_a_transform_with_options_in_yaml_and_flags(plugin: Path, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(CONFIG.format(plugin=plugin))
    loaded = load_job("onmt_llm_train", ["-config", str(config)])
    assert (shouted(loaded, "loud"), shouted(loaded, "other")) == ("hey!!!", "hey!!")
    again = load_job("onmt_llm_train", ["-config", str(config), "-marks", "5"])
    assert shouted(again, "other") == "hey!!!!!"


def test_a_flag_names_it_too(plugin: Path) -> None:
    loaded = load_job("onmt_llm_build_vocab", ["-plugins", str(plugin), "-transforms", "shout"])
    assert loaded.job.corpora.plugins == [str(plugin)] and "shout" in loaded.options


def test_worker_processes_have_it_too(plugin: Path, make_pipeline, write) -> None:
    load_plugins([str(plugin)])
    corpora = {"x": CorpusConfig(path_src=write("x", "w1\nw2\nw3\n"))}
    data = {"plugins": [str(plugin)], "transforms": ["shout"]}
    options = {"shout": TRANSFORMS.get("shout").Config(marks=7)}

    def rows(num_workers: int) -> list[list[list[int]]]:
        pipeline = make_pipeline(corpora, data, {"num_workers": num_workers}, options=options)
        return [batch.tgt_BT.tolist() for batch in islice(iter(pipeline), 2)]

    assert rows(1) == rows(0)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "broken_plugin.py").write_text("1 / 0")
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ConfigError, match=r"broken_plugin.py' cannot be loaded: ZeroDivisionError"):
        load_plugins([str(tmp_path / "broken_plugin.py")])
    with pytest.raises(ConfigError, match="there is another module 'json'"):
        load_plugins([str(tmp_path / "json.py")])
    with pytest.raises(ConfigError, match="'no_such_module' cannot be loaded"):
        load_plugins(["no_such_module"])


def yaml_of(tmp_path: Path, corpus: str) -> str:
    path = tmp_path / "x.yaml"
    path.write_text(f"transforms: [prefix, clean]\nsrc_prefix: all\ndata:\n  a:\n    path_src: a.txt\n{corpus}")
    return str(path)


def prefix_of(loaded) -> str:
    config = loaded.job.corpora
    return build_transforms(config.transforms, loaded.options, config.data["a"], make_context())[0].src


@pytest.mark.parametrize(
    ("corpus", "expected"),
    [
        ("", "all"),
        ("    src_prefix: own\n", "own"),
        ("    options: {src_prefix: own}\n", "own"),
        ("    src_prefix: ''\n", ""),
    ],
)
def test_an_option_of_the_corpus_takes_the_place_of_the_global_one(tmp_path: Path, corpus: str, expected: str) -> None:
    assert prefix_of(load_job("onmt_llm_train", ["-config", yaml_of(tmp_path, corpus)])) == expected


@pytest.mark.parametrize(
    ("corpus", "sentence"),
    [
        ("    src_tgt_ratio: 0.5\n", r"x.yaml:6  'data.a.src_tgt_ratio' must be >= 1, but is 0.5"),
        ("    src_prefx: a\n", r"x.yaml:6  'data.a.src_prefx' is not a known option: did you mean 'src_prefix'"),
        ("    options:\n      scripts_OK: a\n", r"'data.a.scripts_OK' is not an option of a transform: did you mean"),
    ],
)
def test_a_wrong_option_of_a_corpus_is_told_with_its_line(tmp_path: Path, corpus: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_job("onmt_llm_train", ["-config", yaml_of(tmp_path, corpus)])


def test_a_tokeniser_is_the_same_for_all_corpora() -> None:
    corpus = CorpusConfig(options={"src_subword_model": "x"})
    with pytest.raises(ConfigError, match="must be the same for all corpora"):
        build_transforms(["sentencepiece"], {}, corpus, make_context())
