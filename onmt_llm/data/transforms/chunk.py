"""`chunk`: split a long conversation or document into several examples, each starting at a turn or a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import LengthOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example, num_tokens
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.data.transforms.windows import Unit, lines, pieces, rounds
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.base import Tokenizer


class ChunkConfig(Section):
    """Options of `chunk`: split long examples."""

    chunk_length: Annotated[int, Field(ge=4, le=10**7)] = 2048
    """Maximum length of an example in tokens, including BOS and EOS; longer examples are split."""
    chunk_overlap: LengthOrZero = 0
    """Rounds of prompt and answer (in plain text: lines) of the preceding example to repeat at the start of the next
    one, if they fit. They are context: the loss counts each only once."""


@TRANSFORMS.register("chunk")
class Chunk(Transform[ChunkConfig]):
    """Splits long examples of a language model into windows that start at a round of the conversation, or at a line.

    All tokens are kept, in order, and each is trained once. A round or line that is longer than a window is cut. Only
    the last window ends with EOS, if the example does.

    Args:
        length: Maximum number of tokens per window.
        overlap: Number of rounds or lines that a window repeats.
        tokenizer: Decodes tokens, to find those that end a line.
    """

    section = "chunk"
    Config = ChunkConfig
    rewrites = True
    counts_tokens = True
    needs_tokens = True

    def __init__(self, *, length: int, overlap: int, tokenizer: Tokenizer | None) -> None:
        super().__init__()
        self.length = length
        self.overlap = overlap
        self._tokenizer = tokenizer
        self._ends_line: dict[str, bool] = {}

    @classmethod
    def build(cls, config: ChunkConfig, corpus: CorpusConfig, context: TransformContext) -> Chunk:
        if context.codec.task != "lm":
            raise ConfigError("Transform 'chunk' must be used with a language model, but the model has an encoder.")
        length = config.chunk_length - 1 - context.codec.config.specials.add_bos
        return cls(length=length, overlap=config.chunk_overlap, tokenizer=context.tokenizer)

    def __call__(self, example: Example) -> Example | None:
        raise NotImplementedError("one example becomes several: use `batch`")

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        return [chunk for example in examples for chunk in self._chunks(example)]

    def _chunks(self, example: Example) -> list[Example]:
        segments = [*example.src, *example.tgt]
        if num_tokens(segments) <= self.length:
            return [example]
        windows = self._windows(self._units(segments))
        self.made += len(windows) - 1
        last = len(windows) - 1
        return [
            replace(example, src=window, tgt=[], closed=example.closed or number < last)
            for number, window in enumerate(windows)
        ]

    def _units(self, segments: list[Segment]) -> list[Unit]:
        units = rounds(segments)
        if len(units) == 1:
            units = lines(segments, self._is_line_end)
        return [piece for unit in units for piece in pieces(unit, self.length)]

    def _windows(self, units: list[Unit]) -> list[list[Segment]]:
        windows: list[list[Segment]] = []
        start = 0
        while start < len(units):
            room = self.length - num_tokens(units[start])
            end = start + 1
            context = self._context(units[max(0, start - self.overlap) : start], room)
            room -= num_tokens(context)
            while end < len(units) and num_tokens(units[end]) <= room:
                room -= num_tokens(units[end])
                end += 1
            windows.append([*context, *(segment for unit in units[start:end] for segment in unit)])
            start = end
        return windows

    def _context(self, before: list[Unit], room: int) -> list[Segment]:
        """The last complete units that fit, excluded from the loss."""
        kept: list[Segment] = []
        for unit in reversed(before):
            room -= num_tokens(unit)
            if room < 0:
                break
            kept = [*(segment.like(train_on=False) for segment in unit), *kept]
        return kept

    def _is_line_end(self, token: str) -> bool:
        if token not in self._ends_line:
            text = self._tokenizer.decode([token]) if self._tokenizer else token
            self._ends_line[token] = text.endswith("\n")
        return self._ends_line[token]
