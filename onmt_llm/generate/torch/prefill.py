"""Prefill in pieces: a long prompt is read so that the caller can stop, or do other work, between two pieces."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.config.model import ModelConfig
from onmt_llm.generate.search.state import Decoding, PromptIds
from onmt_llm.generate.torch.ensemble import Ensemble
from onmt_llm.nn.kv_cache import KVCache

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
        caches: Each model's keys and values of the beginning of the prompt, which is then not read; it must end before
            the last token.
        piece: Tokens of a piece. A source is encoded at once, whatever its length, and so are prompts of which pieces
            would be computed in another way (`is_separable`).
    """

    def __init__(
        self, ensemble: Ensemble, prompt: PromptIds, *, caches: Sequence[KVCache] = (), piece: int = PIECE
    ) -> None:
        self._ensemble, self._prompt = ensemble, prompt
        self._piece = piece if is_separable(ensemble.config, len(prompt)) else len(prompt)
        self._decoding: Decoding | None = None
        self.caches = list(caches)
        if not self.caches and self._piece < len(prompt):
            self.caches = ensemble.empty_caches(capacity=len(prompt))

    @property
    def is_done(self) -> bool:
        """Whether the prompt is read to its end."""
        return self._decoding is not None

    @property
    def length(self) -> int:
        """Tokens that have been read."""
        if self.is_done:
            return len(self._prompt)
        return self.caches[0].length if self.caches else 0

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
            self._ensemble.extend(self.caches, self._prompt[start:end])
        else:
            self._decoding = self._ensemble.start([self._prompt], caches=self.caches)
            self.caches = self._decoding.caches


def is_separable(config: ModelConfig, length: int) -> bool:
    """Whether a prompt of this length may be read in pieces, or after a beginning that is already in a cache.

    With `dynamic` and `longrope` positions, a sequence beyond the original context has other frequencies than its
    beginning would have alone.
    """
    by_length = config.position == "rotary" and config.rope.scaling in ("dynamic", "longrope")
    return config.is_decoder_only and not (by_length and length > config.rope.original_max_position)
