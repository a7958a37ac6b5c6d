"""Sample dumps: token lines as in OpenNMT-py, and a readable view."""

from __future__ import annotations

from pathlib import Path

import pytest

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import CorpusConfig, DataConfig
from onmt_llm.data.inspection.samples import write_samples
from onmt_llm.data.transforms.subword import SubwordConfig
from onmt_llm.errors import ConfigError
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

LINE = "### Instruction:｟newline｠name three tips｟newline｠｟newline｠### Response:｟newline｠eat well\n"


@pytest.fixture
def sample(sp_model, tmp_path):
    def dump(corpora, n_sample, **options):
        pieces = SentencePieceTokenizer(sp_model).vocab_tokens()
        codec = make_codec(options.pop("task", "lm"), Vocab(pieces, SpecialTokens()))
        names = ["insert_mask_before_placeholder", "sentencepiece"]
        data = DataConfig(transforms=names, zero_out_prompt_loss=True, **options)
        subword = {"subword": SubwordConfig(src_subword_model=sp_model)}
        return write_samples(make_spec(corpora, codec, data, options=subword), tmp_path, n_sample=n_sample)

    return dump


def test_the_dump_shows_newline_tokens_and_what_is_trained(sample, write, tmp_path):
    counts = sample({"alpaca": CorpusConfig(path_src=write("a", LINE * 5))}, 3)
    (tokens, *rest) = (tmp_path / "sample" / "alpaca.sample.src").read_text(encoding="utf-8").splitlines()
    assert len(rest) == 2 and counts["alpaca"].read == counts["alpaca"].kept == 3
    assert "<0x0A> <0x0A> # ## ▁" in tokens and "｟newline｠" not in tokens
    assert not (tmp_path / "sample" / "alpaca.sample.tgt").exists()
    view = (tmp_path / "sample" / "alpaca.sample.txt").read_text(encoding="utf-8")
    assert (
        view.startswith("line 1\ntext    | ### Instruction:｟newline｠") and view.count("⟦ e at ▁ w e l l </s> ⟧") == 3
    )


@pytest.mark.parametrize(("number", "written"), [(-1, 5), (2, 2), (9, 5)])
def test_exactly_as_many_lines_as_asked_for(sample, write, tmp_path, number, written):
    corpora = {"x": CorpusConfig(path_src=write("s", "the cat\n" * 5), path_tgt=write("t", "the mat\n" * 5))}
    sample(corpora, number, task="seq2seq")
    for side in ("src", "tgt"):
        lines = Path(tmp_path / "sample" / f"x.sample.{side}").read_text(encoding="utf-8").splitlines()
        assert len(lines) == written


def test_samples_are_not_overwritten_unasked(sample, write):
    corpora = {"x": CorpusConfig(path_src=write("a", LINE))}
    sample(corpora, 1)
    with pytest.raises(ConfigError, match=r"x\.sample\.src is there"):
        sample(corpora, 1)
    sample(corpora, 1, overwrite=True)
