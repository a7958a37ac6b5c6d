"""`dialogue_chunk`: split a long dialogue into windows that begin at a turn, or repeat the tag of the turn they go on
with.

The windows are those of the Claire models: each is filled; the next one begins with the turn that was cut.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.dialogue.text import SPEAKER
from onmt_llm.data.transforms.dialogue.variants import plain_text
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.errors import ConfigError
from onmt_llm.text.segment import Segment
from onmt_llm.text.tokenizers.base import Tokenizer


class DialogueChunkConfig(Section):
    """Options of `dialogue_chunk`: split long dialogues."""

    dialogue_length: Annotated[int, Field(ge=4, le=10**7)] = 2048
    """Maximum length of an example in tokens, including BOS and EOS; longer dialogues are split."""
    dialogue_train_repeated: bool = False
    """Train the tokens that a window repeats from the one before it too, as the Claire models did. Otherwise they are
    context, and each token is trained once."""


@dataclass(frozen=True)
class Window:
    """A part of a dialogue: repeated tokens, then tokens from `start` to `end`, of which the first are repeated too.

    Attributes:
        tag: The tag that is put in front, as its (start, end).
        start: Index of the first token.
        fresh: Index of the first token that no window before it has.
        end: Index after the last token.
    """

    tag: tuple[int, int]
    start: int
    fresh: int
    end: int


@TRANSFORMS.register("dialogue_chunk")
class DialogueChunk(Transform[DialogueChunkConfig]):
    """Splits long dialogues of a language model.

    A window is as long as possible. The next one begins with the last turn that begins in it, which is repeated whole;
    the last window begins at the first turn from which it reaches the end. If no turn begins in a window, the next
    one begins with the tag of the turn, and continues with the next word.

    Args:
        length: Maximum number of tokens per window.
        tokenizer: Decodes tokens, to find tags and words.
        train_repeated: Whether the loss covers repeated tokens.
    """

    section = "dialogue_chunk"
    Config = DialogueChunkConfig
    rewrites = True
    counts_tokens = True
    needs_tokens = True

    def __init__(self, *, length: int, tokenizer: Tokenizer, train_repeated: bool) -> None:
        super().__init__()
        self._length = length
        self._tokenizer = tokenizer
        self._train_repeated = train_repeated
        self._texts: dict[str, str] = {}

    @classmethod
    def build(cls, config: DialogueChunkConfig, corpus: CorpusConfig, context: TransformContext) -> DialogueChunk:
        if context.codec.task != "lm" or context.tokenizer is None:
            raise ConfigError(
                "Transform 'dialogue_chunk' must be used with a language model, but the model has an encoder."
            )
        length = config.dialogue_length - 1 - context.codec.config.specials.add_bos
        return cls(length=length, tokenizer=context.tokenizer, train_repeated=config.dialogue_train_repeated)

    def __call__(self, example: Example) -> Example | None:
        raise NotImplementedError("one example becomes several: use `batch`")

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        return [chunk for example in examples for chunk in self._chunks(example)]

    def _chunks(self, example: Example) -> list[Example]:
        text = plain_text(example, self.name)
        tokens = text.tokens or []
        if len(tokens) <= self._length:
            return [example]
        windows = self._windows(tokens)
        self.made += len(windows) - 1
        return [
            replace(
                example, src=self._segments(text, tokens, window), closed=example.closed or window.end < len(tokens)
            )
            for window in windows
        ]

    def _segments(self, text: Segment, tokens: list[str], window: Window) -> list[Segment]:
        repeated = [*tokens[slice(*window.tag)], *tokens[window.start : window.fresh]]
        if self._train_repeated or not repeated:
            return [text.like(tokens=[*repeated, *tokens[window.fresh : window.end]])]
        return [text.like(tokens=repeated, train_on=False), text.like(tokens=tokens[window.fresh : window.end])]

    def _windows(self, tokens: list[str]) -> list[Window]:
        tags = self._tags(tokens)
        starts = [start for start, _ in tags]
        total, length = len(tokens), self._length
        windows: list[Window] = []
        tag, start, fresh = (0, 0), 0, 0
        while True:
            end = min(total, start + length - (tag[1] - tag[0]))
            windows.append(Window(tag, start, fresh, end))
            if end == total:
                return windows
            begun = starts[bisect_right(starts, start) : bisect_right(starts, end)]
            fresh = end
            if begun:
                tag, start = (0, 0), min([begun[-1], *(turn for turn in begun if turn > total - length)])
            else:
                turn = bisect_right(starts, start) - 1
                tag = _fitting(tags[turn], length) if turn >= 0 else (0, 0)
                start = self._word_start(tokens, start, end)

    def _tags(self, tokens: list[str]) -> list[tuple[int, int]]:
        """(start, end) of the tags of speakers, in tokens."""
        texts = [self._text(token) for token in tokens]
        ends = list(accumulate(map(len, texts)))
        found = SPEAKER.finditer("".join(texts))
        return [(bisect_right(ends, match.start()), bisect_left(ends, match.end()) + 1) for match in found]

    def _word_start(self, tokens: list[str], start: int, end: int) -> int:
        """The last place up to `end` at which a word begins; `end` if the word is as long as a quarter of a window."""
        for place in range(end, max(start + 1, end - self._length // 4), -1):
            if len(self._tokenizer.decode(tokens[place - 1 : place + 1]).split()) > 1:
                return place
        return end

    def _text(self, token: str) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token])
        return self._texts[token]


def _fitting(tag: tuple[int, int], length: int) -> tuple[int, int]:
    """A tag; none if it would fill half of a window."""
    return tag if 2 * (tag[1] - tag[0]) <= length else (0, 0)
