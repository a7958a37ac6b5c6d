"""Word alignments: reading, mapping to subwords, and refusal of alignments that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.data.parsing.alignment import parse_pharaoh, word_tokens
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.tokenizers.whitespace import WhitespaceTokenizer
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

SPECIALS = SpecialTokens(unk="<unk>", bos="<s>", eos="</s>", pad="<blank>")
VOCAB = Vocab(["<unk>", "<blank>", "<s>", "</s>", "a", "b", "c"], SPECIALS)


class Letters:
    """A tokeniser that marks the beginning of words, as SentencePiece does."""

    control_tokens: frozenset[str] = frozenset()

    def decode(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


def corpus(tmp_path: Path, alignments: str, **more: Any) -> CorpusConfig:
    for name, text in (("src", "a b c\nc\n"), ("tgt", "b a\nc c\n"), ("align", alignments)):
        (tmp_path / name).write_text(text)
    paths = {f"path_{name}": str(tmp_path / name) for name in ("src", "tgt", "align")}
    return CorpusConfig(**paths, **more)


def first_batch(config: CorpusConfig, *, task: Any = "seq2seq", transforms: tuple[str, ...] = ()) -> Any:
    spec = make_spec(
        {"one": config},
        make_codec(task, VOCAB),
        DataConfig(transforms=list(transforms)),
        batching=BatchConfig(valid_batch_size=4),
        seed=1,
        training=False,
    )
    return next(iter(Pipeline(spec)))


def test_pairs_are_source_and_target() -> None:
    assert parse_pharaoh(" 0-1 12-0\n", where="x:1") == [(0, 1), (12, 0)]
    assert parse_pharaoh("", where="x:1") == []
    for bad in ("0", "0-", "a-1", "1:2", "-1-2"):
        with pytest.raises(DataError, match="x:7 must hold pairs such as 0-0"):
            parse_pharaoh(f"0-0 {bad}", where="x:7")


@pytest.mark.parametrize("unit", ["tokens", "words"])
def test_a_batch_knows_which_label_is_aligned_with_which_source_token(tmp_path: Path, unit: Any) -> None:
    batch = first_batch(corpus(tmp_path, "0-1 1-0 2-0\n\n", align_unit=unit))
    row = batch.src_BS.tolist().index([4, 5, 6])
    assert batch.labels_BT.tolist()[row] == [5, 4, 3]
    assert sorted(batch.align_M3.tolist()) == [[row, 0, 1], [row, 0, 2], [row, 1, 0]]


def test_a_batch_without_alignments_has_none(tmp_path: Path) -> None:
    assert first_batch(corpus(tmp_path, "\n\n")).align_M3 is None


def test_words_stand_for_all_their_tokens() -> None:
    pieces = ["▁", "he", "llo", "▁w", "o", "rld", "▁!"]
    assert word_tokens(pieces, Letters()) == [[0, 1, 2], [3, 4, 5], [6]]  # type: ignore[arg-type]
    assert word_tokens(["a", "b"], WhitespaceTokenizer()) == [[0], [1]]


def test_what_does_not_fit_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"align:2 must align the tokens of its example, 1 and 2, but holds 1-1"):
        first_batch(corpus(tmp_path, "0-0\n0-0 1-1\n"))
    with pytest.raises(DataError, match=r"align:2 must align the words of its example, 1 and 2, but holds 0-2"):
        first_batch(corpus(tmp_path, "0-0\n0-2\n", align_unit="words"))
    with pytest.raises(DataError, match=r"path_src and path_tgt and path_align .* must have the same number of lines"):
        first_batch(corpus(tmp_path, "0-0\n"))
    with pytest.raises(ConfigError, match=r"must not move words that its path_align counts, but .* 'prefix'"):
        first_batch(corpus(tmp_path, "0-0\n0-0\n", options={"src_prefix": "a"}), transforms=("prefix",))
    with pytest.raises(ConfigError, match="must have no path_align, since a language model"):
        first_batch(corpus(tmp_path, "0-0\n0-0\n"), task="lm")
    lone = corpus(tmp_path, "0-0\n0-0\n").model_copy(update={"path_tgt": None})
    with pytest.raises(ConfigError, match="but has path_src and path_align"):
        first_batch(lone)
