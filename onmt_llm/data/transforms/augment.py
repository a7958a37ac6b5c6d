"""Base class of transforms that augment a fraction of a corpus: `fuzzymatch`, `terminology`, `inlinetags`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from onmt_llm.data.example import Example
from onmt_llm.data.readers import read_lines
from onmt_llm.data.transforms.transform import ConfigT, Transform
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.text.placeholders import from_line
from onmt_llm.text.segment import Segment


class Augment(Transform[ConfigT]):
    """Augments a random fraction of the examples in training, and all suitable examples otherwise.

    An example whose source has several parts (a conversation) is not changed.

    Args:
        ratio: Fraction of examples to augment.
        training: Whether this is training.

    Attributes:
        group_size: Number of examples passed to `augment` together.
    """

    needs_text = True
    rewrites = True
    inserts_text = True

    def __init__(self, *, ratio: float, training: bool) -> None:
        super().__init__()
        self.ratio = ratio
        self.training = training
        self.group_size = 1
        self.random = random.Random(0)

    def __call__(self, example: Example) -> Example | None:
        return self.batch([example])[0]

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        fit = [example for example in examples if len(example.src) == 1 and example.src[0].text]
        left = len(examples)
        if self.training:
            left = self._share(len(examples))
            self.random.shuffle(fit)
        for start in range(0, len(fit), self.group_size):
            if left <= 0:
                break
            left -= self.augment(fit[start : start + self.group_size], limit=left)
        return list(examples)

    def reseed(self, seed: int) -> None:
        self.random.seed(seed)

    def augment(self, examples: Sequence[Example], *, limit: int) -> int:
        """Augment suitable examples, at most `limit`; returns the number changed."""
        raise NotImplementedError

    def _share(self, count: int) -> int:
        """`ratio` times `count`, rounded up or down at random so that it is right on average."""
        whole, fraction = divmod(count * self.ratio, 1)
        return int(whole) + (self.random.random() < fraction)


def source_text(example: Example) -> str:
    """The source of an example whose source is a single text."""
    return example.src[0].text or ""


def set_source(example: Example, text: str) -> None:
    example.src = [Segment(text, train_on=example.src[0].train_on)]


def read_pairs(path: str | None, *, option: str, delimiter: str = "\t") -> list[tuple[str, str]]:
    """Read lines `source<delimiter>target`; outer white space is removed and empty lines are skipped.

    Raises:
        ConfigError: `option` is not set.
        DataError: The file is not readable, or a line is not a pair.
    """
    if not path:
        raise ConfigError(f"{option} must name a file of lines `source{delimiter!r}target`, but is not given.")
    if not Path(path).is_file():
        raise DataError(f"{option} must name a file, but there is none at {path}.")
    pairs = []
    for number, line in enumerate(read_lines(path), start=1):
        columns = [from_line(column.strip()) for column in line.split(delimiter)]
        if len(columns) == 2 and all(columns):
            pairs.append((columns[0], columns[1]))
        elif line.strip():
            raise DataError(
                f"{path}:{number} must hold a source and a target separated by {delimiter!r}, but holds "
                f"{len(columns)} columns.",
                hint="a column must not be empty" if len(columns) == 2 else None,
            )
    return pairs
