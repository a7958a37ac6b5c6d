"""`group_by`: a corpus becomes one for each group of its files, with the weights of a table."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.cli.jobs import load_job
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.grouping import grouped
from onmt_llm.errors import ConfigError, DataError

TABLE = """\
dataset,genre,turns,words
FR/AMI,meetings,10,90
FR/ICSI/TRAIN,meetings,5,30
FR/ICSI/TEST,tests,1,1
Hamlet,theatre,10,40
"""


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CorpusConfig:
    monkeypatch.chdir(tmp_path)
    for name in ("FR/AMI/train.txt", "FR/Hamlet/train.txt.gz", "FR/ICSI/train.txt"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("[A:] a\n")
    Path("table.csv").write_text(TABLE)
    return CorpusConfig(path_txt="FR/*/train.*", group_by="genre", group_table="table.csv", weight=4)


def weights(corpus: CorpusConfig) -> dict[str, float]:
    return {name: round(group.weight, 9) for name, group in grouped("a", corpus).items()}


def test_groups_are_corpora_that_share_the_weight(corpus: CorpusConfig) -> None:
    groups = grouped("a", corpus)
    assert {name: group.path_txt for name, group in groups.items()} == {
        "a_meetings": ["FR/AMI/train.txt", "FR/ICSI/train.txt"],
        "a_theatre": ["FR/Hamlet/train.txt.gz"],
    }
    assert weights(corpus) == {"a_meetings": 2, "a_theatre": 2}
    by = {"words": 3, "turns": 2.4}
    assert {key: weights(corpus.model_copy(update={"group_weights": [key]}))["a_meetings"] for key in by} == by
    both = corpus.model_copy(update={"group_weights": ["words", "turns"]})
    assert weights(both) == {"a_meetings": 2.918918919, "a_theatre": 1.081081081}
    assert grouped("a_meetings", groups["a_meetings"]) == {"a_meetings": groups["a_meetings"]}


@pytest.mark.parametrize(
    ("options", "table", "error", "words"),
    [
        ({}, "dataset,genre\nFR/AMI,x\n", DataError, ["FR/Hamlet/train.txt.gz has none"]),
        ({}, "dataset,genre\nHamlet,x\nhamlet,y\n", DataError, ["lines 2 and 3"]),
        ({}, "dataset,genre\nHamlet\n", DataError, ["table.csv:2", "2 cells"]),
        ({"group_table": "no.csv"}, TABLE, DataError, ["no.csv is not"]),
        ({"group_by": "kind"}, TABLE, ConfigError, ["group_by", "'kind'", "dataset, genre, turns, words"]),
        ({"group_by": None}, TABLE, ConfigError, ["group_by and group_table"]),
        ({"group_weights": ["words", "hours"]}, TABLE, ConfigError, ["group_weights", "'hours'"]),
        ({"group_weights": ["genre"]}, TABLE, DataError, ["table.csv:2", "'meetings'"]),
    ],
)
def test_what_is_wrong_with_a_table(
    corpus: CorpusConfig, options: dict, table: str, error: type[Exception], words: list[str]
) -> None:
    Path("table.csv").write_text(table)
    with pytest.raises(error) as caught:
        grouped("a", corpus.model_copy(update=options))
    assert all(word in str(caught.value) for word in words)


def test_commands_see_the_groups_with_their_places(corpus: CorpusConfig) -> None:
    Path("FR/Hamlet/train.txt.gz").rename("FR/Hamlet/train.txt")
    Path("x.yaml").write_text(
        "data:\n"
        "  talk: {path_txt: FR/*/train.txt, group_by: genre, group_table: table.csv, path_packed: packs}\n"
        "  valid: {path_txt: FR/*/train.txt, group_by: genre, group_table: table.csv}\n"
    )
    for command in ("onmt_llm_train", "onmt_llm_data"):
        loaded = load_job(command, ["-config", "x.yaml"], checks=lambda loaded: ())
        corpora = loaded.job.corpora.data
        assert list(corpora) == ["talk_meetings", "talk_theatre", "valid_meetings", "valid_theatre"]
        assert corpora["talk_theatre"].path_packed == "packs/theatre"
        assert loaded.where("data", "talk_theatre", "path_txt") == "x.yaml:2"
        assert any("talk_theatre (weight 0.5)" in note for note in loaded.notes)
    Path("table.csv").write_text(TABLE.replace("meetings", "the/meetings"))
    with pytest.raises(ConfigError, match=r"x.yaml:2.*talk_the/meetings"):
        load_job("onmt_llm_data", ["-config", "x.yaml"], checks=lambda loaded: ())
