"""Open the token shards of a corpus, and check that they fit the model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.token_shards.fingerprint import find_pack, recipe, text_files, vocab_hash
from onmt_llm.data.token_shards.litdata import TokenFileReader, open_token_reader
from onmt_llm.data.token_shards.records import TokenDecoder
from onmt_llm.data.token_shards.shard import PackReader
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.codec import Codec

_LONG = 2048
"""Tokens of an example, on average, that are probably a document."""


@dataclass(frozen=True)
class Tokens:
    """The reader of a tokenised corpus, and the decoder of its records."""

    reader: PackReader | TokenFileReader
    decoder: TokenDecoder


def open_tokens(name: str, spec: PipelineSpec) -> Tokens:
    """Open the shards of a corpus with `path_packed` or `path_tokens`.

    Raises:
        ConfigError: Its paths are incompatible.
        DataError: The shards are missing, or belong to another vocabulary or task.
    """
    corpus, data, codec = spec.corpora[name], spec.data, spec.codec
    reader: PackReader | TokenFileReader
    if corpus.path_tokens:
        others = [key for key, value in corpus if key.startswith("path_") and key != "path_tokens" and value]
        others += [key for key in ("where", "unique_by", "sample") if getattr(corpus, key)]
        if others:
            raise ConfigError(
                f"Corpus '{name}' must have neither another path nor a selection beside path_tokens, but has "
                f"{' and '.join(others)}."
            )
        reader = open_token_reader(name, Path(corpus.path_tokens), corpus.row_length)
    else:
        assert corpus.path_packed
        made_by = recipe(corpus, spec)
        reader = PackReader(name, find_pack(name, Path(corpus.path_packed), made_by, text_files(corpus)))
    if data.objective != "sft":
        raise ConfigError(f"Corpus '{name}' must be JSON objects with objective: {data.objective}, but is tokenised.")
    _check_model(name, reader, codec)
    if corpus.path_tokens and spec.training and codec.task == "lm" and "packing" not in spec.batching.model_fields_set:
        _check_rows(name, reader)
    return Tokens(
        reader,
        TokenDecoder(
            name,
            reader.parts,
            vocab_size=len(codec.vocab),
            src_vocab_size=len(codec.src_vocab),
            num_features=len(codec.feature_vocabs),
        ),
    )


def vocabularies(codec: Codec) -> dict[str, Any]:
    """The vocabularies that token ids refer to, by hash."""
    return {
        "vocab": vocab_hash(codec.vocab),
        "src_vocab": None if codec.shares_vocab else vocab_hash(codec.src_vocab),
        "features": [vocab_hash(vocab) for vocab in codec.feature_vocabs],
    }


def _check_rows(name: str, reader: PackReader | TokenFileReader) -> None:
    """Refuse examples of long documents, unless the user says so: a batch of them fits into no memory."""
    mean = reader.mean_tokens
    if mean > _LONG:
        raise ConfigError(
            f"'packing' must be given for tokens of long documents, but is not, and those of corpus '{name}' have "
            f"{mean:,.0f} tokens on average.",
            hint="packing: wrap with packing_length (the context length) cuts the stream of tokens into rows; "
            "packing: off makes each document an example",
        )


def _check_model(name: str, reader: PackReader | TokenFileReader, codec: Codec) -> None:
    where = reader.paths[0]
    if ("src" in reader.parts) != (codec.task == "seq2seq"):
        wanted, held = ("pairs", "texts") if codec.task == "seq2seq" else ("texts", "pairs")
        raise DataError(f"The tokens of corpus '{name}' must be of {wanted} for this model, but {where} holds {held}.")
    if isinstance(reader, PackReader):
        own = vocabularies(codec)
        differing = [key for key, value in own.items() if reader.index["vocabularies"].get(key) != value]
        if differing:
            raise DataError(
                f"The tokens of corpus '{name}' must be of this model's vocabulary, but {where} has another "
                f"{' and '.join(differing)}.",
                hint="pack the texts again",
            )
