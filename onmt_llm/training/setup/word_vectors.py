"""Embeddings at the start of a run: a new vocabulary, pretrained word vectors, frozen tables."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from onmt_llm.config.data import EmbeddingsConfig
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger
from onmt_llm.nn.resize_embeddings import RowMapping, resize_embeddings
from onmt_llm.nn.transformer import Transformer
from onmt_llm.text.placeholders import unescape
from onmt_llm.text.vocab import Vocab
from onmt_llm.training.setup.start import Start


def update_vocabulary(model: Transformer, start: Start, *, param_init: float, glorot: bool) -> None:
    """Resize the embeddings of a checkpoint's model to the run's vocabularies, if they differ."""
    if start.old_codec is None:
        return
    old_src, old_tgt = start.old_codec.src_vocab, start.old_codec.vocab
    tgt, src = _rows(old_tgt, start.codec.vocab), _rows(old_src, start.codec.src_vocab)
    resize_embeddings(model, start.model, tgt=tgt, src=src, param_init=param_init, glorot=glorot)
    for side, rows in (("shared", tgt),) if start.codec.shares_vocab else (("target", tgt), ("source", src)):
        kept = sum(row is not None for row in rows)
        logger.info("update_vocab: %s vocabulary: %d rows kept, %d new.", side, kept, len(rows) - kept)


def _rows(old: Vocab, new: Vocab) -> RowMapping:
    ids = {token: id_ for id_, token in enumerate(old)}
    return [ids.get(token) for token in new]


def load_vectors(model: Transformer, start: Start, options: EmbeddingsConfig) -> None:
    """Load pretrained word vectors into the embeddings of new tokens.

    Raises:
        ConfigError: No token is new: all rows come from the checkpoint.
        DataError: A file holds no vectors, or vectors of another width.
    """
    sides = {"src": options.src_embeddings or options.both_embeddings}
    sides["tgt"] = options.tgt_embeddings or options.both_embeddings
    if not any(sides.values()):
        return
    if start.weights is not None and start.old_codec is None:
        named = [name for name in ("both_embeddings", "src_embeddings", "tgt_embeddings") if getattr(options, name)]
        raise ConfigError(
            f"{' and '.join(named)} must be left out here: train_from has trained embeddings of all tokens.",
            hint="word vectors are for a new model, or for the new tokens of update_vocab",
        )
    old_src, old_tgt = (start.old_codec.src_vocab, start.old_codec.vocab) if start.old_codec else ((), ())
    tables = _tables(model)
    shared = tables["src"] is None or tables["tgt"] is None
    for side, vocab, known in (("src", start.codec.src_vocab, old_src), ("tgt", start.codec.vocab, old_tgt)):
        path, table = sides[side], tables[side]
        if shared:
            path = path or sides["tgt" if side == "src" else "src"]
        if path and table is not None:
            _fill(table, vocab, set(known), path, word2vec=options.embeddings_type == "word2vec", side=side)


def freeze_word_vectors(model: Transformer, options: EmbeddingsConfig) -> None:
    """Freeze the tables that the options name; a table that both sides share is frozen for both."""
    tables = _tables(model)
    for side, frozen in (("src", options.freeze_word_vecs_enc), ("tgt", options.freeze_word_vecs_dec)):
        table = tables[side] or tables["tgt"]
        if frozen and table is not None:
            table.weight.requires_grad_(False)


def _tables(model: Transformer) -> dict[str, nn.Embedding | None]:
    """The embeddings of both sides; None for the encoder if it uses the decoder's."""
    return {
        "src": model.encoder.embed_tokens if model.encoder is not None else None,
        "tgt": model.decoder.embed_tokens if model.decoder is not None else None,
    }


@torch.no_grad()
def _fill(table: nn.Embedding, vocab: Vocab, known: Collection[str], path: str, *, word2vec: bool, side: str) -> None:
    ids = {token: id_ for id_, token in enumerate(vocab) if token not in known}
    hits = 0
    for token, vector in read_vectors(Path(path), wanted=ids, width=table.embedding_dim, word2vec=word2vec):
        table.weight[ids[token]] = vector.to(table.weight)
        hits += 1
    logger.info("%s: vectors for %d of %d %s tokens, %d without.", path, hits, len(ids), side, len(ids) - hits)


def read_vectors(path: Path, *, wanted: Collection[str], width: int, word2vec: bool) -> Iterator[tuple[str, Tensor]]:
    """The vectors of the wanted tokens in a text file in the format of GloVe or word2vec.

    Raises:
        DataError: The file cannot be read, or a line is not a token and `width` numbers.
    """
    seen: set[str] = set()
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                parts = line.rstrip(" \r\n").rsplit(" ", width)
                if number == 1 and _is_header(line):
                    continue
                if number == 1 and word2vec:
                    raise DataError(f"A word2vec file must begin with its two sizes, but {path} begins with a vector.")
                if number <= 2 and (found := _vector_width(line)) != width:
                    raise DataError(
                        f"The vectors must be as wide as hidden_size, {width}, but those of {path} have {found} values."
                    )
                token = unescape(parts[0])
                if token in wanted and token not in seen:
                    seen.add(token)
                    yield token, torch.tensor([float(part) for part in parts[1:]])
    except OSError as error:
        raise DataError(f"The embeddings {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RuntimeError) as error:
        raise DataError(
            f"Every line of embeddings must be a token and {width} numbers, but line {number} of {path} is not."
        ) from error


def _is_header(line: str) -> bool:
    """Whether this is the first line of word2vec: the number of vectors and their width."""
    parts = line.split()
    return len(parts) == 2 and all(part.isdigit() for part in parts)


def _vector_width(line: str) -> int:
    """Number of values after the token."""
    return len(line.rstrip(" \r\n").split(" ")) - 1
