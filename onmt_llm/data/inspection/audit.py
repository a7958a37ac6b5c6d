"""Audit the first bucket of a run for common data mistakes, and log one example."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from onmt_llm.data.corpus import NOTHING_TRAINED, Corpus
from onmt_llm.data.example import IGNORED, Encoded
from onmt_llm.data.statistics import CorpusCounts
from onmt_llm.data.transforms.tokenize import Tokenize
from onmt_llm.errors import DataError, OnmtLlmError
from onmt_llm.log import CLOSE, OPEN
from onmt_llm.text.codec import Codec
from onmt_llm.text.placeholders import NEWLINE
from onmt_llm.text.templates.message import Message, Template
from onmt_llm.text.tokenizers.base import Tokenizer
from onmt_llm.text.vocab import Vocab

Note = tuple[int, str]
"""Level and text of a message for the log."""
CorpusExamples = tuple[Corpus, Sequence[Encoded]]
"""A corpus and its kept examples."""

_MARKUP = re.compile(r"<\|[^<>|\s]+\|>|｟\w+｠|\[/?[A-Z_]{2,}\]")
_SHOWN = 300  # tokens
_UNKNOWN = 0.2  # fraction of tokens; a word vocabulary misses about a tenth of text from another domain


def audit(
    shares: Sequence[CorpusExamples], counts: Mapping[str, CorpusCounts], codec: Codec, *, training: bool
) -> list[Note]:
    """Warnings about the first bucket, and a sample for the log.

    Args:
        shares: Its examples, by corpus.
        counts: Counts of its examples, by name of the corpus.
        codec: Text side of the model that they are for.
        training: Whether to show an example.

    Raises:
        DataError: Examples were read, but none has a trained token.
    """
    examples = [example for _, encoded in shares for example in encoded]
    skipped = sum(own.dropped[NOTHING_TRAINED] for own in counts.values())
    if not examples and skipped:
        raise DataError(
            f"At least one token of the first bucket must be trained, but none of its {skipped} examples has one.",
            hint="zero_out_prompt_loss trains answers only: are there any, and are they marked?",
        )
    warnings = [
        *_untrained(shares, counts),
        *_unmarked(shares),
        *_doubled_bos(examples, codec),
        *_endless(shares, codec),
    ]
    warnings += [warning for corpus, _ in shares for warning in _split_tokens(corpus, codec)]
    warnings += _unknown(shares)
    notes = [(logging.WARNING, text) for text in dict.fromkeys(warnings)]
    if training and examples:
        notes.append(
            (logging.INFO, "First bucket: " + "; ".join(f"{name}: {own.summary()}" for name, own in counts.items()))
        )
        notes.append((logging.INFO, _shown(shares, codec)))
    return notes


def marked(encoded: Encoded, vocab: Vocab) -> str:
    """The decoder's tokens, with brackets ⟦ ⟧ around every run of trained tokens; a terminal shows them in colour.

    Args:
        encoded: An example.
        vocab: The decoder's tokens.
    """
    ids = [*encoded.tgt, *encoded.labels[-1:]]
    shown: list[str] = []
    inside = False
    for position, id_ in enumerate(ids):
        trained = position > 0 and encoded.labels[position - 1] != IGNORED
        if trained != inside:
            shown.append(OPEN if trained else CLOSE)
            inside = trained
        if id_ != IGNORED:
            shown.append(vocab[id_])
    return " ".join([*shown, CLOSE] if inside else shown)


def _untrained(shares: Sequence[CorpusExamples], counts: Mapping[str, CorpusCounts]) -> Iterator[str]:
    for corpus, encoded in shares:
        count = counts[corpus.name].dropped[NOTHING_TRAINED]
        if count and not encoded:
            yield (
                f"Corpus '{corpus.name}' trains nothing: the loss counts no token of its first {count} examples. "
                "Are its answers marked (train_roles, zero_out_prompt_loss)?"
            )


def _unmarked(shares: Sequence[CorpusExamples]) -> Iterator[str]:
    """Warn about plain text whose prompts should not be trained, but in which no prompt is marked."""
    for corpus, encoded in shares:
        alone = [example for example in encoded if example.src is None]
        if corpus.masks_prompts and alone and all(example.labels[0] != IGNORED for example in alone):
            yield (
                f"Corpus '{corpus.name}': zero_out_prompt_loss excludes prompts from the loss, but the first "
                f"{len(alone)} examples have none, so all of their tokens are trained. The transform "
                "insert_mask_before_placeholder finds prompts by their headings; without it, a line needs the marker "
                "｟_mask_before_｠."
            )


def _unknown(shares: Sequence[CorpusExamples]) -> Iterator[str]:
    for corpus, encoded in shares:
        tokens = sum(len(example.tgt) + (0 if example.src is None else len(example.src)) for example in encoded)
        unknown = sum(example.unknown for example in encoded)
        if unknown > _UNKNOWN * tokens:
            yield (
                f"Corpus '{corpus.name}': {100 * unknown / tokens:.1f}% of the first {tokens} tokens are not in the "
                "vocabulary. Does it belong to this tokeniser (src_vocab, tgt_vocab), and is it whole "
                "(src_vocab_size, src_words_min_frequency and those of tgt)?"
            )


def _doubled_bos(examples: Sequence[Encoded], codec: Codec) -> Iterator[str]:
    bos_id = codec.vocab.bos_id
    if bos_id is not None and any((example.tgt[:2] == bos_id).sum() == 2 for example in examples):
        yield "Examples begin with BOS twice: the text or its template brings one of its own."


def _endless(shares: Sequence[CorpusExamples], codec: Codec) -> Iterator[str]:
    """Warn about corpora that never train the end of an answer, unless the options ask for that."""
    vocab = codec.vocab
    for corpus, encoded in shares:
        template = corpus.template or codec.template  # a pack has none of its own
        ends = [token for token in (vocab.specials.eos, *(template.stop_tokens if template else ())) if token]
        ids = [vocab.id(token) for token in ends if token in vocab]
        asked = corpus.trained.on_eos != "none"
        if asked and ids and encoded and not any(np.isin(example.labels, ids).any() for example in encoded):
            yield (
                f"Corpus '{corpus.name}' never trains a token that ends an answer ({', '.join(ends)}): a model "
                "trained only on it will not know when to stop."
            )


def _split_tokens(corpus: Corpus, codec: Codec) -> Iterator[str]:
    """Warn about special tokens that the tokeniser splits like text."""
    tokenize = next((transform for transform in corpus.transforms if isinstance(transform, Tokenize)), None)
    if tokenize is None:
        return
    for token in corpus.text_tokens:
        yield from _split(token, tokenize.src, corpus, codec)
    for token in _written_as_text(corpus.template):
        yield from _split(token, tokenize.tgt, corpus, codec)


def _split(token: str, tokenizer: Tokenizer, corpus: Corpus, codec: Codec) -> Iterator[str]:
    pieces = [piece for piece in tokenizer.encode(token, continuation=True) if piece.strip("▁ĠĊ￭")]
    if len(pieces) > 1:
        yield (
            f"The token '{token}' of corpus '{corpus.name}' is split into {len(pieces)} pieces, {' '.join(pieces)}: "
            "make it a piece of the tokeniser (user_defined_symbols of SentencePiece, added_tokens of tokenizer.json)."
        )
    elif pieces and pieces[0] not in codec.src_vocab:
        yield f"The token '{token}' of corpus '{corpus.name}' is not in the vocabulary: it is unknown to the model."


def _written_as_text(template: Template | None) -> list[str]:
    """Text of the chat template that looks like a control token but is not one."""
    if template is None:
        return []
    try:
        segments = template.render([Message("user", "a"), Message("assistant", "b")], generation_prompt=False)
    except OnmtLlmError:
        return []
    return [token for segment in segments for token in _MARKUP.findall(segment.text or "")]


def _shown(shares: Sequence[CorpusExamples], codec: Codec) -> str:
    """The first example of readable length, or else the start of one."""
    corpus, encoded = next((corpus, encoded) for corpus, encoded in shares if encoded)
    example = next((each for each in encoded if len(each.tgt) <= _SHOWN), encoded[0])
    cut = replace(example, tgt=example.tgt[:_SHOWN], labels=example.labels[:_SHOWN])
    more = " ..." if len(example.tgt) > _SHOWN else ""
    text = marked(cut, codec.vocab).replace("\n", NEWLINE)
    return f"An example of corpus '{corpus.name}', what the loss counts highlighted:\n{text}{more}"
