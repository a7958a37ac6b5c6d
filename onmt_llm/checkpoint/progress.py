"""How far a conversion of tensors is."""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType

from onmt_llm.progress import ProgressBar


class TensorProgress:
    """Counts the bytes and tensors that are done, and shows rate and time left.

    Args:
        what: What is done, in a word or two.
        sizes: Bytes of each tensor.
    """

    def __init__(self, what: str, sizes: Collection[int]) -> None:
        self._tensors, self._total = len(sizes), sum(sizes)
        self._done = self._count = 0
        self._progress = ProgressBar(what, self._total, unit="B", describe=self._sentence)

    def __enter__(self) -> TensorProgress:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)

    def add(self, *sizes: int) -> None:
        """Tensors of these sizes in bytes are done."""
        self._done, self._count = self._done + sum(sizes), self._count + len(sizes)
        self._progress.add(sum(sizes), f"{self._count}/{self._tensors} tensors")

    def _sentence(self, seconds: float) -> str:
        left = max(0, self._total - self._done) * seconds / max(1, self._done)
        return (
            f"{self._count} of {self._tensors} tensors, {self._done / 1e6:.0f} of {self._total / 1e6:.0f} MB, "
            f"{self._done / seconds / 1e6:.0f} MB/s, {left:.0f} s left"
        )
