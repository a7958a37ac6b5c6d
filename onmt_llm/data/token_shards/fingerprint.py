"""Fingerprints of packed corpora: identify the inputs of a pack, and detect a stale one.

A pack is found by its inputs, never by name alone: the content of the corpus files, everything that may change an
example (transforms with all their options and the files that these name, tokenisers, template, vocabularies) and our
own version. If any of these has changed, the pack does not match, so a stale one is never read.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.checksums import sha256_of_file, sha256_of_sample
from onmt_llm.config.checkpoint import SequenceTokens
from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.readers.files import files_of
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.data.token_shards.shard import INDEX, read_index
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.errors import DataError
from onmt_llm.log import logger
from onmt_llm.text.templates.fingerprint import template_fingerprint
from onmt_llm.text.vocab import Vocab
from onmt_llm.version import __version__

_NOT_OF_CORPUS = {"weight", "shuffle", "path_packed", "path_tokens", "row_length", "split"} | {
    *("group_by", "group_table", "group_weights"),
}
_NOT_OF_DATA = {
    *("data", "transforms", "n_sample", "save_data", "dump_samples", "overwrite"),
    *("shuffle", "index_cache", "skip_empty_level", "mixing_temperature", "epochs"),
}
"""Options that do not affect examples. All others, including future ones, may."""
_NEWER_OF_CORPUS = {
    *("src_lang", "tgt_lang", "reader", "dataset_split"),
    *("where", "unique_by", "unique_threshold", "sample", "sample_seed"),
}
_NEWER_OF_DATA = {"src_lang", "tgt_lang", "template"}
"""Options that packs of earlier versions do not know: left out where they have their defaults."""

_TOKENS = 1
"""Version of the conversion from examples to tokens; the index has a version of its own for the file format."""


def recipe(corpus: CorpusConfig, spec: PipelineSpec) -> dict[str, Any]:
    """Everything that determines the tokens, except the corpus files."""
    data, codec = spec.data, spec.codec
    own = _options(corpus, _NOT_OF_CORPUS, _NEWER_OF_CORPUS)
    paths = sorted(key for key, value in own.items() if key.startswith("path_") and value)
    shared = _options(data, _NOT_OF_DATA, _NEWER_OF_DATA)
    sequences = {} if codec.sequences == SequenceTokens() else {"sequences": codec.sequences.model_dump(mode="json")}
    return {
        "version": [_TOKENS, __version__],
        "task": codec.task,
        "training": spec.training,
        "paths": paths,
        "corpus": _with_files({key: value for key, value in own.items() if not key.startswith("path_")}),
        "data": _with_files(shared),
        "transforms": [_transform(name, data.transform_options) for name in data.transforms_of(corpus)],
        "model": {
            "add_bos": codec.config.specials.add_bos,
            **sequences,
            "vocab": vocab_hash(codec.vocab),
            "src_vocab": None if codec.shares_vocab else vocab_hash(codec.src_vocab),
            "features": [vocab_hash(vocab) for vocab in codec.feature_vocabs],
            "tokenizer": codec.tokenizer.fingerprint,
            "src_tokenizer": None if codec.shares_tokenizer else codec.src_tokenizer.fingerprint,
            "template": template_fingerprint(codec.template),
        },
    }


def _options(section: Section, left_out: set[str], newer: set[str]) -> dict[str, Any]:
    values, default = section.model_dump(mode="json"), type(section)().model_dump(mode="json")
    left_out = left_out | {key for key in newer if values[key] == default[key]}
    return {key: value for key, value in values.items() if key not in left_out}


def vocab_hash(vocab: Vocab) -> str:
    """SHA-256 of a vocabulary: its tokens in order and its special tokens."""
    content = [list(vocab), vocab.specials.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def text_files(corpus: CorpusConfig) -> list[Path]:
    """The files that a corpus is read from."""
    keys = [key for key, value in corpus if key.startswith("path_") and key not in _NOT_OF_CORPUS and value]
    return [path for key in keys for path in files_of(corpus, key)]


def inputs_of(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Hashes of files, with size, time and a sample for a quick comparison."""
    return [{**_quick(path), "sha256": sha256_of_file(path)} for path in paths]


def fingerprint(made_by: Mapping[str, Any], inputs: Sequence[Mapping[str, Any]]) -> str:
    """A hash of a recipe and the content of the files."""
    content = [made_by, [item["sha256"] for item in inputs]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_pack(corpus: str, folder: Path, made_by: Mapping[str, Any], paths: Sequence[Path]) -> Path:
    """Find the pack of these files with this recipe in a folder.

    Raises:
        DataError: There is none; the message names the differences from the closest one.
    """
    plain = json.loads(json.dumps(made_by))
    hashes: list[str] | None = None
    differing: list[str] = []
    for candidate in packs(corpus, folder):
        index = read_index(candidate)
        other = _differences(index["recipe"], plain)
        if not other and not _look_same(index["inputs"], paths):
            if hashes is None:
                logger.info(
                    "The files of corpus '%s' were touched after they were packed: comparing their content.", corpus
                )
                hashes = [sha256_of_file(path) for path in paths]
            other = [] if [item.get("sha256") for item in index["inputs"]] == hashes else ["files"]
        if not other:
            return candidate
        if not differing or len(other) < len(differing):
            differing = other
    what = f"has only packs that differ in {', '.join(differing)}" if differing else "has no pack of it"
    raise DataError(
        f"path_packed of corpus '{corpus}' must hold a pack of its current files and options, but {folder} {what}.",
        hint="onmt_llm_data pack -config x.yaml writes it; without path_packed it is tokenised on the fly",
    )


def packs(corpus: str, folder: Path) -> Iterator[Path]:
    """The packs of a corpus in a folder."""
    for index in sorted(folder.glob(f"*/{INDEX}")):
        if index.parent.name.rpartition("-")[0] == corpus:
            yield index.parent


def _differences(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Names of the parts in which two recipes differ."""
    keys = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
    parts = [key for key in keys if key != "model"]
    if "model" in keys:
        parts += [key for key in other["model"] if mine.get("model", {}).get(key) != other["model"][key]]
    return parts


def _quick(path: Path) -> dict[str, Any]:
    """Size, modification time and hash of a sample of a file."""
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sample": sha256_of_sample(path)}


def _look_same(inputs: Sequence[Mapping[str, Any]], paths: Sequence[Path]) -> bool:
    if len(inputs) != len(paths):
        return False
    pairs = zip(inputs, paths, strict=True)
    return all({key: value for key, value in item.items() if key != "sha256"} == _quick(path) for item, path in pairs)


def _transform(name: str, options: Mapping[str, Section]) -> dict[str, Any]:
    kind = TRANSFORMS.get(name)
    section = options.get(kind.section, kind.Config())
    own = kind.__module__.split(".")[0] == __name__.split(".")[0]
    # the code of a plug-in may change without a new version
    source = None if own else sha256_of_file(Path(inspect.getfile(kind)))
    return {"name": name, "options": _with_files(section.model_dump(mode="json")), "source": source}


def _with_files(value: Any) -> Any:
    """Replace the paths of existing files with hashes of their content."""
    if isinstance(value, dict):
        return {key: _with_files(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_with_files(inner) for inner in value]
    if isinstance(value, str) and 0 < len(value) < 4096 and "\0" not in value and Path(value).is_file():
        return {"file": sha256_of_file(Path(value))}
    return value
