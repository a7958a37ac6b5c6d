"""`deduplicate`: examples that were seen before are dropped, within a bounded window.

Exact copies are found by a 64-bit hash. Near copies are found by MinHash (datasketch): sets of word n-grams whose
Jaccard similarity is above the threshold share, with high probability, a band of their signatures (Broder 1997;
Leskovec et al., Mining of Massive Datasets, ch. 3). An example does not count as a copy of itself: when a corpus begins
again, its lines are known by their numbers.
"""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, Literal

import numpy as np
from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.sides import text_of
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.optional import require

Keys = tuple[int, ...]
"""Hashes of 64 bits; examples that share one are copies."""


class DeduplicateConfig(Section):
    """Options of `deduplicate`."""

    dedup_method: Literal["exact", "near"] = "exact"
    """`exact`: the same text. `near`: most n-grams of words are the same."""
    dedup_on: Literal["both", "src", "tgt"] = "both"
    """The side that must be the same; `both` = source and target together."""
    dedup_window: int = Field(10_000, ge=1)
    """Examples of the corpus that are remembered (16 bytes each, `near` about 80, in every saved state of the data)."""
    dedup_threshold: float = Field(0.8, gt=0, lt=1)
    """`near`: share of n-grams that two copies have in common (Jaccard similarity)."""
    dedup_ngram: int = Field(3, ge=1)
    """`near`: words of an n-gram."""
    dedup_permutations: int = Field(128, ge=16)
    """`near`: size of a MinHash; more is slower and more exact."""


@TRANSFORMS.register("deduplicate")
class Deduplicate(Transform):
    """Drops copies, in training and validation.

    Args:
        text: The part of an example that is compared.
        keys: Hashes of a text.
        window: How many examples are remembered.
        reason: What copies are counted as.
    """

    name = "deduplicate"
    section = "deduplicate"
    Config = DeduplicateConfig
    needs_text = True
    remembers = True

    def __init__(
        self, *, text: Callable[[Example], str], keys: Callable[[str], Keys], window: int, reason: str = "duplicate"
    ) -> None:
        super().__init__()
        self.window = window
        self._text = text
        self._keys = keys
        self._reason = reason
        self._seen: OrderedDict[int, Keys] = OrderedDict()  # keys by line, the oldest first
        self._line: dict[int, int] = {}  # the line that each key was last seen in

    @classmethod
    def build(cls, config: Section, corpus: CorpusConfig, context: TransformContext) -> Deduplicate:
        assert isinstance(config, DeduplicateConfig)
        near = config.dedup_method == "near"
        return cls(
            text=_TEXTS[config.dedup_on],
            keys=min_hashes(config) if near else _exact,
            window=config.dedup_window,
            reason="near_duplicate" if near else "duplicate",
        )

    def __call__(self, example: Example) -> Example | None:
        keys = self._keys(self._text(example))
        if any(self._line.get(key, example.line) != example.line for key in keys):
            self.dropped[self._reason] += 1
            return None
        self._remember(example.line, keys)
        return example

    def _remember(self, line: int, keys: Keys) -> None:
        self._forget(line)
        self._seen[line] = keys
        self._line.update(dict.fromkeys(keys, line))
        if len(self._seen) > self.window:
            self._forget(next(iter(self._seen)))

    def _forget(self, line: int) -> None:
        for key in self._seen.pop(line, ()):
            if self._line.get(key) == line:
                del self._line[key]

    def state_dict(self) -> dict[str, Any]:
        if not self._seen:
            return {}
        lines = np.fromiter(self._seen, dtype="<u8", count=len(self._seen))
        keys = np.array(list(self._seen.values()), dtype="<u8")
        return {"lines": _packed(lines), "keys": _packed(keys)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._seen.clear()
        self._line.clear()
        if not state:
            return
        lines = np.frombuffer(base64.b64decode(state["lines"]), dtype="<u8")
        keys = np.frombuffer(base64.b64decode(state["keys"]), dtype="<u8").reshape(len(lines), -1)
        for line, row in zip(lines.tolist(), keys.tolist(), strict=True):
            self._remember(line, tuple(row))


_TEXTS: dict[str, Callable[[Example], str]] = {
    "src": lambda example: text_of(example.src),
    "tgt": lambda example: text_of(example.tgt),
    "both": lambda example: f"{text_of(example.src)}\n\0\n{text_of(example.tgt)}",
}


def _packed(numbers: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(numbers.tobytes()).decode("ascii")


def _hash(data: bytes) -> int:
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def _exact(text: str) -> Keys:
    return (_hash(text.encode("utf-8", "surrogatepass")),)


def min_hashes(config: DeduplicateConfig) -> Callable[[str], Keys]:
    """A function that hashes each band of a text's MinHash, with the bands that suit the threshold best."""
    datasketch = require("datasketch", "transform 'deduplicate' with dedup_method: near")
    index = datasketch.MinHashLSH(threshold=config.dedup_threshold, num_perm=config.dedup_permutations)
    bands, rows = index.b, index.r
    blank = datasketch.MinHash(num_perm=config.dedup_permutations, seed=1)

    def keys(text: str) -> Keys:
        words = text.split()
        size = min(config.dedup_ngram, len(words))
        grams = {" ".join(words[start : start + size]) for start in range(len(words) - size + 1)}
        sketch = blank.copy()
        sketch.update_batch([gram.encode("utf-8", "surrogatepass") for gram in grams])
        values = sketch.hashvalues
        return tuple(
            _hash(band.to_bytes(2, "little") + values[band * rows : (band + 1) * rows].tobytes())
            for band in range(bands)
        )

    return keys
