"""`sentencepiece`, `bpe`, `onmt_tokenize`, `huggingface_tokenize`: tokenise text with the named library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

from onmt_llm.config.checkpoint import TokenizerKind
from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.example import Example
from onmt_llm.data.transforms.subword import SECTION, SubwordConfig, open_tokenizers, random_options, seeder
from onmt_llm.data.transforms.transform import TRANSFORMS, Transform, TransformContext
from onmt_llm.text.segment import Segment, continuations, tokenize_segments
from onmt_llm.text.tokenizers.base import Tokenizer, encode_pieces
from onmt_llm.text.tokenizers.control_guard import ControlGuard


class Tokenize(Transform[SubwordConfig]):
    """Splits text into tokens; segments that already have tokens keep them.

    Args:
        src: Tokeniser of the source side, or of the whole example with `joint`.
        tgt: Tokeniser of the target side.
        joint: Source and target are one text (a language model). If neither side has white space where they meet, as
            in parallel files, a space is inserted before the target, so that the source is the same at inference.
        bos: The token that starts an example; text after it is encoded as the start of a text.
        seed: Seeds the library if it samples; otherwise None.
    """

    name = "tokenize"
    section = SECTION
    Config = SubwordConfig
    tokenizes = True
    kind: ClassVar[TokenizerKind] = "whitespace"

    def __init__(
        self,
        src: Tokenizer,
        tgt: Tokenizer,
        *,
        joint: bool,
        bos: str | None = None,
        seed: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__()
        self.src = src
        self.tgt = tgt
        self.joint = joint
        self.bos = bos
        self._seed = seed
        self._keeps_newlines: set[Tokenizer] = set()

    @property
    def draws(self) -> bool:
        return self._seed is not None

    @classmethod
    def build(cls, config: SubwordConfig, corpus: CorpusConfig, context: TransformContext) -> Transform:
        src, tgt = (_guarded(each, context) for each in open_tokenizers(cls.name, cls.kind, config, context))
        draws = context.training and any(random_options(cls.kind, config, side) for side in {"src", config.target_side})
        seed = seeder(cls.kind) if draws else None
        return cls(src, tgt, joint=context.codec.task == "lm", bos=context.codec.bos, seed=seed)

    def __call__(self, example: Example) -> Example | None:
        return self.batch([example])[0]

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        if self.joint:
            for example in examples:
                _space_at_seam(example)
            self._encode([[*example.src, *example.tgt] for example in examples], self.src)
        else:
            self._encode([example.src for example in examples], self.src)
            self._encode([example.tgt for example in examples], self.tgt)
        return list(examples)

    def undo(self, output: str | list[str]) -> str | list[str]:
        return output if isinstance(output, str) else self.tgt.decode(output)

    def reseed(self, seed: int) -> None:
        if self._seed is not None:
            self._seed(seed)

    def _encode(self, sides: Sequence[list[Segment]], tokenizer: Tokenizer) -> None:
        self._check_newlines(sides, tokenizer)
        if self._seed:  # one thread: sampling in several would not be reproducible
            for side in sides:
                for segment, tokens in zip(side, tokenize_segments(tokenizer, side, bos=self.bos), strict=True):
                    segment.tokenized(tokens)
            return
        starts: list[Segment] = []
        others: list[Segment] = []
        for side in sides:
            if len(side) == 1:
                starts += side
            else:
                for segment, goes_on in zip(side, continuations(tokenizer, side, bos=self.bos), strict=True):
                    (others if goes_on else starts).append(segment)
        _encode_all(starts, tokenizer, continuation=False)
        _encode_all(others, tokenizer, continuation=True)

    def _check_newlines(self, sides: Sequence[list[Segment]], tokenizer: Tokenizer) -> None:
        """On the first text with a line break, check that the tokeniser preserves line breaks."""
        if tokenizer in self._keeps_newlines:
            return
        if any("\n" in (segment.text or "") for side in sides for segment in side):
            tokenizer.check_newline()
            self._keeps_newlines.add(tokenizer)


@TRANSFORMS.register("sentencepiece")
class SentencePiece(Tokenize):
    """SentencePiece models."""

    kind = "sentencepiece"


@TRANSFORMS.register("bpe")
class Bpe(Tokenize):
    """BPE codes of subword-nmt."""

    kind = "bpe"


@TRANSFORMS.register("onmt_tokenize")
class OnmtTokenize(Tokenize):
    """OpenNMT's Tokenizer, with or without subwords."""

    kind = "onmt_tokenize"

    def batch(self, examples: Sequence[Example]) -> list[Example]:
        if self._seed is None:
            return super().batch(examples)
        # The library has one generator per thread, and a new seed only affects threads that have not sampled yet.
        with ThreadPoolExecutor(1) as fresh:
            return fresh.submit(super().batch, examples).result()


@TRANSFORMS.register("huggingface_tokenize")
class HuggingFaceTokenize(Tokenize):
    """A Hugging Face tokenizer.json."""

    kind = "huggingface"


def default_tokenize(context: TransformContext) -> Tokenize:
    """The model's tokeniser, for a corpus that lists none."""
    src, tgt = (_guarded(each, context) for each in (context.codec.src_tokenizer, context.codec.tokenizer))
    return Tokenize(src, tgt, joint=context.codec.task == "lm", bos=context.codec.bos)


def _guarded(tokenizer: Tokenizer, context: TransformContext) -> Tokenizer:
    """Ensure that a tokeniser never produces control tokens from text; a checkpoint's usually does already."""
    if isinstance(tokenizer, ControlGuard) and context.control_tokens <= tokenizer.control_tokens:
        return tokenizer
    return ControlGuard(tokenizer, context.control_tokens)


def _encode_all(segments: Sequence[Segment], tokenizer: Tokenizer, *, continuation: bool) -> None:
    segments = [segment for segment in segments if segment.text is not None]
    texts = [segment.text or "" for segment in segments]
    for segment, tokens in zip(segments, encode_pieces(tokenizer, texts, continuation=continuation), strict=True):
        segment.tokenized(tokens)


def _space_at_seam(example: Example) -> None:
    if not (example.src and example.tgt):
        return
    before, after = example.src[-1].text, example.tgt[0].text
    if before and after and not (before[-1].isspace() or after[0].isspace()):
        example.tgt[0].text = f" {after}"
