"""What the engines of both kinds of CTranslate2 releases have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from onmt_llm.config.generate import Feature, GenerationConfig
from onmt_llm.generate.ct2.decoding import Callback, Ct2Decoding
from onmt_llm.generate.ct2.model import Ct2Model, check_release
from onmt_llm.generate.engine import Delta, Hypothesis
from onmt_llm.generate.lengths import BatchType

if TYPE_CHECKING:
    from typing_extensions import Self

    from onmt_llm.text.codec import Codec


class Ct2Engine(ABC):
    """Answers with a CTranslate2 model. The two engines differ in how they batch, search and score.

    Args:
        model: The loaded release.
        codec: Its vocabularies, tokenisers and template.
    """

    kind: ClassVar[Literal["Generator", "Translator"]]
    """CTranslate2's class."""
    features: ClassVar[frozenset[Feature]]
    """Those that it has, of those that not every engine has."""
    length_names: ClassVar[tuple[str, str]]
    """CTranslate2's names of `max_length` and `min_length`."""
    batch_per_thread: ClassVar[bool] = False
    """On a CPU each thread computes a batch of its own."""

    def __init__(self, model: Ct2Model, codec: Codec) -> None:
        self._model, self._codec = model, codec
        self._decoding = Ct2Decoding(model, codec, features=self.features, length_names=self.length_names)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        device: str = "auto",
        compute_type: str = "auto",
        threads: int = 0,
        is_new: bool = False,
    ) -> Self:
        """Load a release; see `open_engine`. One that `is_new` was just written and has no manifest yet."""
        from onmt_llm.text.codec import Codec

        if not is_new:
            check_release(directory)
        codec = Codec.open(directory)
        model = Ct2Model(
            directory,
            cls.kind,
            device=device,
            compute_type=compute_type,
            threads=threads,
            batch_per_thread=cls.batch_per_thread,
        )
        return cls(model, codec)

    def for_languages(self, src: str = "", tgt: str = "") -> Self:
        """See `Engine.for_languages`."""
        return type(self)(self._model, self._codec.for_languages(src, tgt))

    @property
    def codec(self) -> Codec:
        return self._codec

    @property
    def compute_type(self) -> str:
        """The type that the model really runs in."""
        return self._model.compute_type

    @property
    def workers(self) -> int:
        """Batches that are computed at once."""
        return self._model.workers

    @property
    def forced(self) -> int:
        """Tokens that the decoder is given before the answer, of which a callback hears too."""
        return self._decoding.forced

    @abstractmethod
    def check(
        self,
        prompts: Sequence[Sequence[str]],
        options: GenerationConfig,
        *,
        prefixes: bool = False,
        places: Sequence[int] | None = None,
    ) -> None:
        """Refuse what CTranslate2 cannot do; `places` as in `generate`.

        Raises:
            ConfigError: The options contradict each other, or CTranslate2 lacks one of them.
            UnsupportedError: An option does not work with a prompt of this length, or with this model.
            DataError: A prompt is too long.
        """

    @abstractmethod
    def logits(self, sequence: Sequence[str], *, source: Sequence[str] | None = None) -> np.ndarray:
        """See `Engine.logits`."""

    @abstractmethod
    def batch_key(self, prompt: Sequence[str], options: GenerationConfig) -> Hashable:
        """Prompts with equal keys do not change or slow down each other in one batch."""

    def generate(
        self,
        prompts: Sequence[Sequence[str]],
        options: GenerationConfig,
        *,
        batch_size: int = 16,
        batch_type: BatchType = "sents",
        prefixes: Sequence[Sequence[str]] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[list[Hypothesis]]:
        """See `Engine.generate`."""
        self.check(prompts, options, prefixes=prefixes is not None, places=places)
        known = [self._known(prompt) for prompt in prompts]
        batches = self._batches(known, options, batch_size=batch_size, batch_type=batch_type)
        return self._decoding.generate(known, options, batches, self._answer_batch)

    def decode_batch(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, callback: Callback
    ) -> list[list[Hypothesis]]:
        """Answer prompts, none empty, whose `batch_key` is equal, in one batch.

        Args:
            prompts: Tokens.
            options: How to search or sample; with `beam_size` 1.
            callback: Called in a thread of CTranslate2 with each step; True ends the answer of that step. It must not
                hold the model when this call is over.
        """
        known = [self._known(prompt) for prompt in prompts]
        return self._decoding.decode_batch(known, options, self._answer_batch, callback)

    def stream(
        self, prompt: Sequence[str], options: GenerationConfig, *, should_stop: Callable[[], bool] | None = None
    ) -> Iterator[Delta]:
        """See `Engine.stream`."""
        self.check([prompt], options)
        if not prompt:
            yield Delta("", 0, "stop")
        elif options.beam_size > 1:
            yield self.generate([prompt], options)[0][0].as_delta()
        else:
            yield from self._decoding.stream(partial(self._start, prompt, options), options, should_stop)

    @abstractmethod
    def _known(self, tokens: Sequence[str]) -> list[str]:
        """A prompt with unknown tokens replaced by our vocabulary's rule, so that all engines read the same."""

    @abstractmethod
    def _batches(
        self, prompts: Sequence[Sequence[str]], options: GenerationConfig, *, batch_size: int, batch_type: BatchType
    ) -> list[list[int]]:
        """Batches in which no prompt changes another one's answer, as places in `prompts`."""

    @abstractmethod
    def _answer_batch(
        self, prompts: list[list[str]], options: GenerationConfig, callback: Callback | None = None
    ) -> list[list[Hypothesis]]:
        """One call of CTranslate2 for a batch of known prompts."""

    @abstractmethod
    def _start(self, prompt: Sequence[str], options: GenerationConfig, callback: Callback) -> Sequence[Any]:
        """Start a batch whose first answer is that of the prompt, and return CTranslate2's asynchronous results."""
