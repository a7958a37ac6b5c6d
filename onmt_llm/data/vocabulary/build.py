"""`build_vocab`: the vocabulary files of transformed corpora, as `token<TAB>count`, the most frequent token first."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from onmt_llm.atomic import atomic_file, write_text
from onmt_llm.config.build_vocab import VocabConfig
from onmt_llm.config.data import VocabularyConfig
from onmt_llm.config.model import Task
from onmt_llm.data.inspection.samples import write_samples
from onmt_llm.data.run_codec import counting_codec
from onmt_llm.data.spec import PipelineSpec, split_corpora
from onmt_llm.data.transforms.build import added_tokens
from onmt_llm.data.transforms.subword import subword_options
from onmt_llm.data.vocabulary import subwords
from onmt_llm.data.vocabulary.count import Counts, count_tokens
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.text.codec import Codec
from onmt_llm.text.new_vocab import with_specials
from onmt_llm.text.placeholders import escape
from onmt_llm.text.tokenizers.sentencepiece import SentencePieceTokenizer
from onmt_llm.text.vocab import Vocab

DEFAULT_SAMPLE = 5000
# Characters that would break a line, here or in OpenNMT-py: any white space, zero bytes, the byte-order mark.
_SPACE = re.compile("[\\s\x00\ufeff]")


def build_vocab(config: VocabConfig) -> dict[Path, int]:
    """Count tokens and write the files named by `src_vocab` and `tgt_vocab`.

    Args:
        config: All options.

    Returns:
        The number of tokens in each file.

    Raises:
        ConfigError: Something is not given, or a file is there already.
        DataError: A corpus or a tokeniser cannot be read.
    """
    counting, data = config.counting, config.corpora
    corpora, _ = split_corpora(data.data)
    decision = config.decide_task()
    task = decision.task
    logger.info("Task: %s, %s.", task, decision.reason)
    files = _files(config.vocabulary, task)
    _check_free([*files, *_feature_files(files, data.n_src_feats)], overwrite=data.overwrite)
    n_sample = data.n_sample or DEFAULT_SAMPLE
    if n_sample > 0:
        logger.info("The first %d records of each corpus are counted; n_sample -1 counts all.", n_sample)
    codec = counting_codec(config.vocabulary, data, task)
    spec = PipelineSpec(corpora, data, codec, seed=max(counting.seed, 0))
    unseen: list[str] = []
    if counting.learn_subwords:
        spec, unseen = _learn(spec, config, n_sample)
    counts = count_tokens(spec, n_sample=n_sample, processes=counting.num_threads)
    written: dict[Path, int] = {}
    for file, sides in files.items():
        counter = _together(counts, sides, unseen)
        entries = _chosen(counter, config.vocabulary, sides[0])
        _write(file, entries)
        logger.info("%s: %d of %d tokens.", file, len(entries), len(counter))
        written[file] = len(entries)
    for file, counter in zip(_feature_files(files, data.n_src_feats), counts.features, strict=True):
        _write(file, counter.most_common())
        written[file] = len(counter)
    if data.dump_samples:
        _dump_samples(spec, config, counts)
    return written


def _files(vocabulary: VocabularyConfig, task: Task) -> dict[Path, list[str]]:
    """The files to write, each with the sides whose tokens it holds."""
    src, tgt = vocabulary.src_vocab, vocabulary.tgt_vocab
    if task == "lm" or vocabulary.share_vocab:
        if not (src or tgt):
            raise ConfigError("src_vocab must name the file to write, but is not given.")
        return {Path(src or tgt or ""): ["src", "tgt"]}
    if not src or not tgt or src == tgt:
        raise ConfigError(
            f"src_vocab and tgt_vocab must name two files to write, but are {src or 'not given'} and "
            f"{tgt or 'not given'}.",
            hint="share_vocab: true makes one vocabulary for both sides",
        )
    return {Path(src): ["src"], Path(tgt): ["tgt"]}


def _feature_files(files: Iterable[Path], count: int) -> list[Path]:
    """Files of source feature values, next to the source vocabulary."""
    return [Path(f"{next(iter(files))}_feat{number}") for number in range(count)]


def _check_free(files: Iterable[Path], *, overwrite: bool) -> None:
    taken = [str(file) for file in files if file.exists()]
    if taken and not overwrite:
        raise ConfigError(
            f"Existing files must not be replaced, but {', '.join(taken)} would be.", hint="-overwrite replaces them"
        )


def _learn(spec: PipelineSpec, config: VocabConfig, n_sample: int) -> tuple[PipelineSpec, list[str]]:
    """Learn a subword model; returns the corpora tokenised with it, and the pieces that must be in the vocabulary."""
    kind = subwords.subword_kind(spec)
    subword = subword_options(spec.data)
    if not subword.src_subword_model and not config.corpora.save_data:
        raise ConfigError("src_subword_model must name the model to write, but is not given.")
    file = Path(subword.src_subword_model or Path(config.corpora.save_data or "") / f"{kind}.model")
    _check_free([file], overwrite=config.corpora.overwrite)
    size = config.counting.learn_subwords_size
    logger.info("Learning %d %s subwords.", size, kind)
    content = subwords.learn(
        spec,
        kind,
        size=size,
        n_sample=n_sample,
        processes=config.counting.num_threads,
        symbols=added_tokens(spec.corpora, spec.data, in_text=True),
    )
    with atomic_file(file) as place:
        place.write_bytes(content)
    logger.info("Subword model: %s (src_subword_model).", file)
    pieces: list[str] = []
    if kind == "sentencepiece":
        # mainly byte pieces, which encode characters that are not in the corpora
        tokenizer = SentencePieceTokenizer(file)
        pieces = [piece for piece in tokenizer.vocab_tokens() if piece not in {*tokenizer.control_tokens, "<unk>"}]
    return subwords.with_model(spec, file), pieces


def _together(counts: Counts, sides: list[str], unseen: list[str]) -> Counter[str]:
    """The summed counts of the sides; pieces that do not occur come last, with count 0."""
    total: Counter[str] = Counter()
    for side in sides:
        total.update(getattr(counts, side))
    for piece in unseen:
        total.setdefault(piece, 0)
    return total


def _chosen(counter: Counter[str], vocabulary: VocabularyConfig, side: str) -> list[tuple[str, int]]:
    """Tokens for a file, by frequency and then by first occurrence."""
    least = getattr(vocabulary, f"{side}_words_min_frequency")
    most = getattr(vocabulary, f"{side}_vocab_size") or None
    return [(token, count) for token, count in counter.most_common() if count >= least][:most]


def _write(file: Path, entries: list[tuple[str, int]]) -> None:
    write_text(file, "".join(f"{escape(token, _SPACE)}\t{count}\n" for token, count in entries))


def _dump_samples(spec: PipelineSpec, config: VocabConfig, counts: Counts) -> None:
    """Write readable samples of the counted examples."""
    if not config.corpora.save_data:
        raise ConfigError("save_data must name a folder for the samples of dump_samples, but is not given.")
    codec, known = spec.codec, spec.codec.vocab

    def vocab(counter: Counter[str]) -> Vocab:
        return Vocab(with_specials(list(counter), list(known)), known.specials)

    src, tgt = vocab(counts.src), vocab(counts.src + counts.tgt)
    counted = Codec(
        codec.config,
        tgt,
        codec.tokenizer,
        src_vocab=None if codec.task == "lm" else src,
        feature_vocabs=[vocab(counter) for counter in counts.features],
    )
    n_sample = config.corpora.n_sample or DEFAULT_SAMPLE
    write_samples(replace(spec, codec=counted), config.corpora.save_data, n_sample=n_sample)
