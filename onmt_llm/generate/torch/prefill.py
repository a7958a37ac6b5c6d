"""Prefill in pieces: a long prompt is read so that the caller can stop, or do other work, between two pieces."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.search.state import Decoding, PromptIds
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.generate.torch.prefix import PrefixCache
from onmt_llm.nn.kv_cache import KVCache

_ROOM = 256
"""Further tokens for which a row has room before its buffers grow."""
PIECE = 256
"""Tokens that are read at once: a fraction of a second even on a CPU, and enough for full speed."""


class PromptReader:
    """Reads one prompt, piece by piece.

    Examples:
        >>> reader = PromptReader(ensemble, ids)
        >>> while not reader.is_done:
        ...     reader.step()
        >>> reader.decoding.logits_RV.shape
        torch.Size([1, 32000])

    Args:
        ensemble: The models.
        prompt: Its token ids, at least one.
        prefixes: Earlier sequences; what the prompt has in common with one of them is not read.
        piece: Tokens of a piece. A source is encoded at once, whatever its length, and so are prompts of which pieces
            would be computed in another way (`is_separable`).
    """

    def __init__(
        self, ensemble: Ensemble, prompt: PromptIds, *, prefixes: PrefixCache | None = None, piece: int = PIECE
    ) -> None:
        self._ensemble, self._prompt = ensemble, prompt
        separable = is_separable(ensemble.config, len(prompt))
        self._prefixes = prefixes if separable else None
        self._piece = piece if separable else len(prompt)
        self._decoding: Decoding | None = None
        self._caches: list[KVCache] = []
        if self._prefixes is not None:
            self._caches = self._prefixes.find(prompt, capacity=len(prompt) + _ROOM)
        if not self._caches and self._piece < len(prompt):
            self._caches = ensemble.empty_caches(capacity=len(prompt) + _ROOM)

    @property
    def is_done(self) -> bool:
        """Whether the prompt is read to its end."""
        return self._decoding is not None

    @property
    def length(self) -> int:
        """Tokens that have been read."""
        if self.is_done:
            return len(self._prompt)
        return self._caches[0].length if self._caches else 0

    @property
    def decoding(self) -> Decoding:
        """The state after the prompt, of one row."""
        assert self._decoding is not None, "the prompt is not yet read to its end"
        return self._decoding

    def step(self) -> None:
        """Read the next piece; under `torch.inference_mode()`, as whatever is done with the state later."""
        start = self.length
        end = start + self._piece
        if end < len(self._prompt):
            self._ensemble.extend(self._caches, self._prompt[start:end])
        else:
            self._decoding = self._ensemble.start([self._prompt], caches=self._caches)

    def keep(self, answer: Sequence[int] = ()) -> None:
        """Give what was read, and the answer with which the row went on, to the earlier sequences. The row must not be
        continued after that."""
        caches = self._caches if self._decoding is None else self._decoding.caches
        ids = [*self._prompt, *answer]
        # The last token of an answer was chosen, but not read.
        known = ids[: min(caches[0].length, len(ids) - 1)] if caches else []
        if self._prefixes is not None and is_separable(self._ensemble.config, len(ids)):
            for cache in caches:
                cache.trim(len(known))
            self._prefixes.store(known, caches)


def is_separable(config: ModelConfig, length: int) -> bool:
    """Whether a prompt of this length may be read in pieces, or after a beginning that is already in a cache.

    With `dynamic` and `longrope` positions, a sequence beyond the original context has other frequencies than its
    beginning would have alone.
    """
    by_length = config.position == "rotary" and config.rope.scaling in ("dynamic", "longrope")
    return config.is_decoder_only and not (by_length and length > config.rope.original_max_position)
