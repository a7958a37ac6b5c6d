"""Counts of read, kept and dropped examples per corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onmt_llm.data.example import Encoded
    from onmt_llm.data.readers import Record

_EXACT_BITS = 6
_BY_LENGTH = ("lengths", "src_lengths")
_BY_REASON = ("dropped", "suspect")


@dataclass
class CorpusCounts:
    """Examples and tokens of one corpus so far; `read + made == kept + sum(dropped.values())`.

    Attributes:
        read: Examples read.
        made: Additional examples, beyond one per record: of conversations that have several training texts, and made by
            transforms.
        kept: Examples that became part of a batch.
        dropped: Examples dropped, by reason; those joined to another are `merged`.
        truncated: Examples that a transform truncated.
        tokens: Tokens of the kept examples, without padding.
        trained: Tokens that are trained.
        unknown: Tokens that are not in the vocabulary.
        lengths: Kept examples by tokens of the decoder's side, as `length_bin` rounds them.
        src_lengths: The same of the encoder's side; empty for a language model.
        suspect: Records that are read although they look wrong, by reason.
    """

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    truncated: int = 0
    tokens: int = 0
    trained: int = 0
    unknown: int = 0
    lengths: Counter[int] = field(default_factory=Counter)
    src_lengths: Counter[int] = field(default_factory=Counter)
    made: int = 0
    suspect: Counter[str] = field(default_factory=Counter)

    def add_read(self, records: Sequence[Record]) -> None:
        """Count records that are read, and those that were passed over before them."""
        self.read += len(records)
        for record in records:
            for reason, number in record.passed:
                self.read += number
                self.dropped[reason] += number

    def keep(self, encoded: Encoded, trained: int) -> None:
        """Count an example that becomes part of a batch."""
        length = len(encoded.tgt)
        self.kept += 1
        self.tokens += length
        self.lengths[length_bin(length)] += 1
        if encoded.src is not None:
            self.tokens += len(encoded.src)
            self.src_lengths[length_bin(len(encoded.src))] += 1
        self.trained += trained
        self.unknown += encoded.unknown

    def add(self, other: CorpusCounts) -> None:
        """Add the counts of another process or another part of the corpus."""
        for each in fields(self):
            value = getattr(other, each.name)
            if isinstance(value, Counter):
                getattr(self, each.name).update(value)
            else:
                setattr(self, each.name, getattr(self, each.name) + value)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, unchanged by a JSON round trip."""
        counters = {
            name: {str(key): n for key, n in getattr(self, name).items()}
            for name in ("dropped", "suspect", *_BY_LENGTH)
        }
        return {**self.__dict__, **counters}

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any]) -> CorpusCounts:
        lengths = {name: Counter({int(key): n for key, n in saved.get(name, {}).items()}) for name in _BY_LENGTH}
        reasons = {name: Counter(saved.get(name, {})) for name in _BY_REASON}
        return cls(**{**saved, **reasons, **lengths})

    def figures(self) -> dict[str, float]:
        """The numbers by name, for metrics."""
        return {
            "read": self.read,
            "made": self.made,
            "kept": self.kept,
            **{f"dropped/{reason}": number for reason, number in sorted(self.dropped.items())},
            **{f"suspect/{what}": number for what, number in sorted(self.suspect.items())},
            "truncated": self.truncated,
            "tokens": self.tokens,
            "trained": self.trained,
            "unknown_rate": self.unknown / max(self.tokens, 1),
            "median_length": percentile(self.lengths, 0.5),
        }

    def progress(self) -> str:
        """What became of the examples, in one readable line."""
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(self.dropped.items())) or "none"
        made = f", made {self.made} more" if self.made else ""
        truncated = f", truncated {self.truncated}" if self.truncated else ""
        suspect = "".join(f", {number} with {what.replace('_', ' ')}" for what, number in sorted(self.suspect.items()))
        return f"read {self.read}{suspect}{made}, kept {self.kept}{truncated}, dropped: {reasons}"

    def summary(self) -> str:
        """`progress`, and the tokens."""
        unknown = f", {self.unknown} unknown ({percent(self.unknown, self.tokens)})" if self.unknown else ""
        trained = f"{self.trained} trained ({percent(self.trained, self.tokens)})"
        return f"{self.progress()}; {self.tokens} tokens, {trained}{unknown}"


def length_bin(length: int) -> int:
    """The length rounded down to its six leading bits: exact below 64, within 3% above; a few hundred bins at most."""
    width = bin_width(length)
    return length // width * width


def bin_width(length: int) -> int:
    """Width of the bin of a length, a power of two."""
    return 1 << max(length.bit_length() - _EXACT_BITS, 0)


def percentile(lengths: Mapping[int, int], share: float) -> int:
    """The length that this share of the examples does not exceed (except for rounding); 0 without examples."""
    wanted = share * sum(lengths.values())
    seen = 0
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= wanted:
            return length
    return 0


def percent(part: float, whole: float) -> str:
    return f"{100 * part / max(whole, 1):.2f}%"
