"""`switchout`, `tokendrop`, `tokenmask`: random noise on tokens, in training only.

The number of tokens changed on a side follows Wang et al. 2018 (https://arxiv.org/abs/1808.07512): d of n tokens,
with probability proportional to exp(-temperature * d), d = 0 ... n - 1. Control tokens, tags and other placeholders
`｟...｠` are never changed and never drawn as replacements.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from onmt_llm.config.data import CorpusConfig
from onmt_llm.config.numbers import Fraction, PositiveOrZero
from onmt_llm.config.section import Section
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.text.decoding import BYTE_PIECE
from onmt_llm.text.new_vocab import PADDING
from onmt_llm.text.segment import Segment
from onmt_llm.text.vocab import Vocab

IsFixed = Callable[[str], bool]


class NoiseConfig(Section):
    """Options of `switchout`, `tokendrop`, `tokenmask` and `bart`: noise on the source."""

    switchout_temperature: PositiveOrZero = 1.0
    """`switchout`: smaller values replace more tokens; 0 = all numbers of replacements are equally likely."""
    tokendrop_temperature: PositiveOrZero = 1.0
    """`tokendrop`: smaller values drop more tokens."""
    tokenmask_temperature: PositiveOrZero = 1.0
    """`tokenmask`: smaller values mask more tokens."""
    mask_token: str = "<mask>"
    """`tokenmask`, `bart`: the mask token."""
    permute_sent_ratio: Fraction = 0.0
    """`bart`: fraction of the sentences (ending in . ? !) of a source to permute."""
    rotate_ratio: Fraction = 0.0
    """`bart`: fraction of sources to rotate: they start at a random token, and the part before it comes last."""
    insert_ratio: Annotated[float, Field(ge=0, le=1000)] = 0.0
    """`bart`: number of tokens to insert at random positions, as a fraction of the tokens of the source."""
    random_ratio: Fraction = 0.0
    """`bart`: fraction of the masks and inserted tokens that are random tokens instead of the mask token."""
    mask_ratio: Fraction = 0.0
    """`bart`: fraction of the words of a source to mask (of the tokens, with `mask_length: subword`)."""
    mask_length: Literal["subword", "word", "span-poisson"] = "subword"
    """`bart`: unit of masking: a token, a word, or a span of words of random length."""
    poisson_lambda: Annotated[float, Field(ge=0.1, le=1000)] = 3.0
    """`bart`: mean length of a span; spans of length 0 insert a mask."""
    replace_length: Literal[-1, 0, 1] = -1
    """`bart`: masks per masked unit: 1, 0 (delete it), or -1 = one per token."""


class _Noise(Transform[NoiseConfig]):
    """Changes some tokens of each side.

    Args:
        temperature: Controls the number of changed tokens.
        control_tokens: Tokens that are never changed.
        active: Whether this is training.
    """

    section = "noise"
    Config = NoiseConfig
    needs_tokens = True
    rewrites = True
    both_sides: ClassVar[bool] = True

    def __init__(self, *, temperature: float, control_tokens: Collection[str], active: bool) -> None:
        super().__init__()
        self.temperature = temperature
        self.active = active
        self._is_fixed = fixed(control_tokens)
        self._random = random.Random(0)

    def __call__(self, example: Example) -> Example | None:
        if self.active:
            self._change(example.src if self.both_sides else inputs(example), is_target=False)
            if self.both_sides:
                self._change(example.tgt, is_target=True)
        return example

    def reseed(self, seed: int) -> None:
        self._random.seed(seed)

    def _change(self, side: Sequence[Segment], *, is_target: bool) -> None:
        places = [
            (segment, place)
            for segment in side
            for place, token in enumerate(segment.tokens or ())
            if not self._is_fixed(token)
        ]
        count = sample_distance(len(places), self.temperature, self._random)
        if count:
            for segment in side:
                # the list of tokens may be shared with a cache of tokenised texts
                segment.tokens = list(segment.tokens or ())
            self.change(self._random.sample(places, count), is_target=is_target)

    def change(self, places: Sequence[tuple[Segment, int]], *, is_target: bool) -> None:
        """Change the tokens at these positions, in any order."""
        raise NotImplementedError


@TRANSFORMS.register("switchout")
class SwitchOut(_Noise):
    """Replaces tokens of both sides with others, drawn uniformly from the vocabulary.

    Args:
        src: Replacements for the source side.
        tgt: Replacements for the target side.
    """

    def __init__(
        self,
        *,
        temperature: float,
        control_tokens: Collection[str],
        active: bool,
        src: Sequence[str],
        tgt: Sequence[str],
    ) -> None:
        super().__init__(temperature=temperature, control_tokens=control_tokens, active=active)
        self._drawn = {False: src, True: tgt}

    @classmethod
    def build(cls, config: NoiseConfig, corpus: CorpusConfig, context: TransformContext) -> SwitchOut:
        without = {*context.control_tokens, config.mask_token}
        tgt = drawable(context.codec.vocab, without)
        src = tgt if context.codec.shares_vocab else drawable(context.codec.src_vocab, without)
        return cls(
            temperature=config.switchout_temperature,
            control_tokens=context.control_tokens,
            active=context.training,
            src=src,
            tgt=tgt,
        )

    def change(self, places: Sequence[tuple[Segment, int]], *, is_target: bool) -> None:
        drawn = self._drawn[is_target]
        for segment, place in places:
            assert segment.tokens is not None
            segment.tokens[place] = draw_other(segment.tokens[place], drawn, self._random)


@TRANSFORMS.register("tokendrop")
class TokenDrop(_Noise):
    """Drops tokens of both sides, but never all tokens of a side."""

    @classmethod
    def build(cls, config: NoiseConfig, corpus: CorpusConfig, context: TransformContext) -> TokenDrop:
        return cls(
            temperature=config.tokendrop_temperature,
            control_tokens=context.control_tokens,
            active=context.training,
        )

    def change(self, places: Sequence[tuple[Segment, int]], *, is_target: bool) -> None:
        for segment, place in sorted(places, key=lambda each: -each[1]):
            assert segment.tokens is not None
            del segment.tokens[place]


@TRANSFORMS.register("tokenmask")
class TokenMask(_Noise):
    """Masks tokens of the source side; without a target side, tokens that are not trained."""

    both_sides = False

    def __init__(self, *, temperature: float, control_tokens: Collection[str], active: bool, mask: str) -> None:
        super().__init__(temperature=temperature, control_tokens=control_tokens, active=active)
        self.mask = mask

    @classmethod
    def build(cls, config: NoiseConfig, corpus: CorpusConfig, context: TransformContext) -> TokenMask:
        return cls(
            temperature=config.tokenmask_temperature,
            control_tokens=context.control_tokens,
            active=context.training,
            mask=config.mask_token,
        )

    @classmethod
    def added_tokens(cls, config: NoiseConfig, corpus: CorpusConfig) -> list[str]:
        return [config.mask_token]

    def change(self, places: Sequence[tuple[Segment, int]], *, is_target: bool) -> None:
        for segment, place in places:
            assert segment.tokens is not None
            segment.tokens[place] = self.mask


def sample_distance(tokens: int, temperature: float, rng: random.Random) -> int:
    """Number of tokens to change: d < `tokens` with probability proportional to exp(-temperature * d)."""
    if tokens < 2:
        return 0
    uniform = rng.random()
    if temperature * tokens < 1e-6:
        return int(uniform * tokens)
    # the sum of a geometric series, solved for its length
    whole = -math.expm1(-temperature * tokens)
    return min(int(-math.log1p(-uniform * whole) / temperature), tokens - 1)


def draw_other(token: str, drawn: Sequence[str], rng: random.Random) -> str:
    """A random element of `drawn` other than `token`; `token` if there is no other."""
    while drawn and (len(drawn) > 1 or drawn[0] != token):
        other = drawn[int(rng.random() * len(drawn))]
        if other != token:
            return other
    return token


def drawable(vocab: Vocab | None, control_tokens: Collection[str]) -> list[str]:
    """The tokens of a vocabulary that represent text: no special tokens, placeholders, byte tokens or padding rows."""
    if vocab is None:
        return []
    roles = (vocab.specials.unk, vocab.specials.bos, vocab.specials.eos, vocab.specials.pad)
    is_fixed = fixed({*control_tokens, *(token for token in roles if token)})
    return [
        token for token in vocab if not (is_fixed(token) or token.startswith(PADDING) or BYTE_PIECE.fullmatch(token))
    ]


def fixed(control_tokens: Collection[str]) -> IsFixed:
    """A predicate for control tokens and placeholders, which noise does not change."""
    control = frozenset(control_tokens)

    def is_fixed(token: str) -> bool:
        return token in control or (token.startswith("｟") and token.endswith("｠"))

    return is_fixed


def inputs(example: Example) -> list[Segment]:
    """The model's input: the source side, or, without a target side, the segments that are not trained."""
    return example.src if example.tgt else [segment for segment in example.src if not segment.train_on]
