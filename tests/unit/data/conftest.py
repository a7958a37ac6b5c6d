"""Small corpora and models for the tests of the data package."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from onmt_llm.config.checkpoint import SpecialTokens
from onmt_llm.config.data import BatchConfig, CorpusConfig, DataConfig
from onmt_llm.data.pipeline import Pipeline
from onmt_llm.text.vocab import Vocab
from tiny_codecs import make_codec, make_spec

WORDS = ["a", "b", "c", "d", "e", "f", "g", "h"]
SPECIALS = SpecialTokens(pad="<blank>")
PROMPT = "Below is an instruction.｟newline｠｟newline｠### Instruction:｟newline｠"

MakePipeline = Callable[..., Pipeline]


@pytest.fixture
def vocab() -> Vocab:
    return Vocab(["<unk>", "<blank>", "<s>", "</s>", *WORDS, "｟newline｠"], SPECIALS)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str | bytes], str]:
    """Writes a file and gives its path, as an option would."""

    def write_file(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return str(path)

    return write_file


@pytest.fixture
def words() -> Callable[[int, int], str]:
    """`words(lines, seed)`: lines of 1 to 12 random words."""

    def make(lines: int, seed: int) -> str:
        draw = random.Random(seed)
        return "".join(" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) + "\n" for _ in range(lines))

    return make


@pytest.fixture
def make_pipeline(vocab: Vocab) -> MakePipeline:
    """A training pipeline, by default of a language model; words are split at spaces."""

    def make(
        corpora: Mapping[str, CorpusConfig],
        data: Mapping[str, Any] | None = None,
        batching: Mapping[str, Any] | None = None,
        **overrides: Any,
    ) -> Pipeline:
        names = ("tokenizer", "src_tokenizer", "template", "feature_vocabs", "src_vocab", "add_bos")
        text = {name: overrides.pop(name) for name in names if name in overrides}
        codec = make_codec(overrides.pop("task", "lm"), overrides.pop("vocab", vocab), **text)
        ranks = {name: overrides.pop(name) for name in ("rank", "world_size", "audited") if name in overrides}
        batching = {"batch_size": 4, "bucket_size": 16, **(batching or {})}
        settings = {"seed": 7, **overrides}
        spec = make_spec(corpora, codec, DataConfig(**(data or {})), batching=BatchConfig(**batching), **settings)
        return Pipeline(spec, **ranks)

    return make


def train_sentencepiece(path: Path, **options: Any) -> str:
    sentences = ["the cat sat on the mat", "### Instruction: name three tips", "### Response: eat well and sleep"] * 20
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    path.write_bytes(model.getvalue())
    return str(path)


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A LLaMA-like SentencePiece model: byte fallback, nothing normalised away."""
    return train_sentencepiece(tmp_path_factory.mktemp("sp") / "sp.model", vocab_size=360, model_type="unigram")


@pytest.fixture(scope="session")
def bpe_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same by byte-pair encoding, as LLaMA's is: its words can be encoded apart."""
    return train_sentencepiece(tmp_path_factory.mktemp("sp") / "bpe.model", vocab_size=330, model_type="bpe")
