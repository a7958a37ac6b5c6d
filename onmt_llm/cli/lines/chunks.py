"""The input of `onmt_llm_translate` in chunks: lines that are read, answered and written together.

Only one chunk is in memory. Answers do not depend on where a chunk ends.
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from onmt_llm.checksums import fast_hash
from onmt_llm.data.readers.lines import decode_lines, open_lines, read_lines
from onmt_llm.errors import DataError

if TYPE_CHECKING:
    from onmt_llm.generate.lengths import BatchType
    from onmt_llm.generate.line_prompts import LinePrompts

BATCHES = {"seq2seq": 64, "lm": 16}
"""Batches of a chunk: enough that sorting its lines by length is as good as sorting the whole file, and so few that
little is lost if the process is killed. The answers of language models are longer."""
TOKENS_OF_A_LINE = 32
"""A guess, where the size of batches is given in tokens."""
PAUSE = 0.2
"""Seconds without a further line after which the lines of a stream that have arrived are answered."""
_BLOCK = 1 << 17  # no smaller than the buffers below, so that `read1` leaves nothing in them


def chunk_lines(task: Literal["lm", "seq2seq"], batch_size: int, batch_type: BatchType) -> int:
    """Lines of a chunk: always as many on one machine, so that a resumed run has the same batches, to the last bit.

    Args:
        task: Of the model.
        batch_size: Prompts or tokens of a batch.
        batch_type: Unit of `batch_size`.
    """
    batch_lines = max(1, batch_size // TOKENS_OF_A_LINE) if batch_type == "tokens" else batch_size
    parallel = max(1, (os.cpu_count() or 1) // 4)  # CTranslate2 answers a batch on each core
    return BATCHES[task] * parallel * batch_lines


class LineInput:
    """The lines of an input, from the first to the last.

    Args:
        path: A file, which is read once at the start to check and count its lines; or a stream (`-`, a pipe).

    Attributes:
        count: Number of lines; None for a stream.

    Raises:
        DataError: The file is missing, or holds a byte that is not UTF-8.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        is_file = path != "-" and Path(path).is_file()
        self.count = sum(1 for _ in read_lines(path)) if is_file else None
        self._size = self._current_size()
        self._taken = 0
        name, self._file = open_lines(path)
        self._arrived: deque[bytes] = deque()
        self._rest: bytes | None = b""
        lines = iter(self._file.readline, b"") if self.count is not None else self._arriving()
        self._lines = decode_lines(name, lines)

    def take(self, most: int) -> list[str]:
        """The next lines; none at the end. Of a stream, those that arrive without a pause.

        Raises:
            DataError: The file has changed since it was counted, or a byte of a stream is not UTF-8.
        """
        if self.count is None:
            self._wait(most)
            most = min(most, len(self._arrived))
        lines = list(islice(self._lines, most))
        self._taken += len(lines)
        if self.count is not None:
            at_end = len(lines) < most
            if self._current_size() != self._size or (at_end and self._taken != self.count):
                raise DataError(f"An input must not change while it is answered, but {self.path} has changed.")
        return lines

    def _current_size(self) -> int | None:
        if self.count is None:
            return None
        return os.stat(self.path).st_size if Path(self.path).is_file() else -1

    def _wait(self, most: int) -> None:
        """Wait for the first line of the stream, and for more until there is a pause."""
        while len(self._arrived) < most and self._rest is not None:
            if self._arrived and not self._has_more():
                return
            data = self._file.read1(_BLOCK)
            pieces = (self._rest + data).split(b"\n")
            self._rest = pieces.pop() if data else None
            self._arrived.extend(piece + b"\n" for piece in pieces if data or piece)

    def _has_more(self) -> bool:
        try:
            return bool(select.select([self._file], [], [], PAUSE)[0])
        except (OSError, ValueError):  # nothing that can be asked
            return True

    def _arriving(self) -> Iterator[bytes]:
        while self._arrived:
            yield self._arrived.popleft()


@dataclass(frozen=True)
class LineChunk:
    """Lines that are answered together.

    Attributes:
        first: Place of the first line in the whole input.
        lines: The lines.
        prompts: Their prompts.
        references: The lines of `tgt`, if there is one.
    """

    first: int
    lines: Sequence[str]
    prompts: LinePrompts
    references: Sequence[str] | None


class ChunkReader:
    """Reads the lines of `src`, and those of `tgt` beside them, chunk by chunk.

    Args:
        src: The inputs.
        tgt: References or prefixes.

    Raises:
        DataError: The two have different numbers of lines.
    """

    def __init__(self, src: LineInput, tgt: LineInput | None) -> None:
        self._src, self._tgt = src, tgt
        self._digests = {"src": fast_hash(), **({"tgt": fast_hash()} if tgt else {})}
        self._place = 0
        if tgt is not None and src.count is not None and tgt.count not in (None, src.count):
            raise DataError(f"tgt must have a line for each of the {src.count} inputs, but {tgt.path} has {tgt.count}.")

    @property
    def digests(self) -> dict[str, str]:
        """XXH3 of the lines of each input up to the last chunk."""
        return {name: digest.hexdigest() for name, digest in self._digests.items()}

    def skip(self, lines: int) -> None:
        """Skip lines that are answered already; the digests then cover them."""
        while self._place < lines and (passed := self._src.take(min(lines - self._place, 1024))):
            self._count(passed, self._references(len(passed)))

    def chunks(self, size: int, build: Callable[..., LinePrompts]) -> Iterator[LineChunk]:
        """The chunks of the lines that are left.

        Where prompts may have several lines, a chunk ends where one does: the last one waits for the lines after it.

        Args:
            size: Maximum number of lines of a chunk; more only where one prompt has more.
            build: Makes the prompts of `lines`, given the place of the `first` of them.
        """
        held: list[str] = []
        while True:
            new = self._src.take(size)
            lines, held = [*held, *new], []
            if not lines:
                break
            prompts = build(lines, first=self._place)
            if prompts.joins_lines and new:
                end = prompts.places[-1] - self._place
                lines, held = lines[:end], lines[end:]
                if not lines:
                    continue
                prompts = build(lines, first=self._place)
            references = self._references(len(lines))
            chunk = LineChunk(self._place, lines, prompts, references)
            self._count(lines, references)
            yield chunk
        if self._tgt is not None and self._tgt.take(1):
            raise self._unequal("more")

    def _references(self, number: int) -> list[str] | None:
        if self._tgt is None:
            return None
        lines: list[str] = []
        while len(lines) < number and (new := self._tgt.take(number - len(lines))):
            lines += new
        if len(lines) < number:
            raise self._unequal("fewer")
        return lines

    def _count(self, lines: Sequence[str], references: Sequence[str] | None) -> None:
        for name, part in (("src", lines), ("tgt", references)):
            if part is not None:
                self._digests[name].update("".join(f"{line}\n" for line in part).encode())
        self._place += len(lines)

    def _unequal(self, what: str) -> DataError:
        path = "" if self._tgt is None else self._tgt.path
        return DataError(f"tgt must have a line for each input, but {path} has {what} lines than there are inputs.")
