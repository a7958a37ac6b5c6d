"""Perplexity of a text under a model: of each line, and in total.

The perplexity of a line is exp(-log probability / tokens). The tokens are those that the model predicts: all tokens of
the line and the end token, but not the start token. The total uses the sums over all lines.
OpenNMT-py's `LM_scoring.py` sums the same log probabilities, but its divisor leaves out one token of each line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onmt_llm.errors import ConfigError, DataError
from onmt_llm.generate.scoring import LineScore, score_pairs, score_texts
from onmt_llm.text.placeholders import from_line

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine


@dataclass(frozen=True)
class Perplexity:
    """The perplexity of a text.

    Attributes:
        lines: Scores of each line.
        total: Score of all lines together.
    """

    lines: list[LineScore]
    total: LineScore


def measure(engine: Engine, sources: Sequence[str], targets: Sequence[str] | None = None) -> Perplexity:
    """Perplexity of texts, or of targets given their sources.

    Args:
        engine: The model.
        sources: Lines of text.
        targets: Targets of the sources; an encoder-decoder model needs them.

    Raises:
        ConfigError: An encoder-decoder model without targets.
        DataError: There is no token to predict, or the numbers of targets and sources differ.
    """
    codec = engine.codec
    prompts = [codec.encode(from_line(line)) if line.strip() else [] for line in sources]
    if targets is not None:
        if len(targets) != len(sources):
            raise DataError(f"'tgt' must have as many lines as 'src', {len(sources)}, but has {len(targets)}.")
        lines = score_pairs(engine, prompts, [codec.tokenizer.encode(from_line(line)) for line in targets])
    elif codec.config.model.is_decoder_only:
        lines = score_texts(engine, prompts)
    else:
        raise ConfigError(
            "'tgt' must be given for an encoder-decoder model, but is not.", hint="-tgt FILE, the answers to -src"
        )
    total = LineScore(math.fsum(line.log_prob for line in lines), sum(line.tokens for line in lines))
    if not total.tokens:
        raise DataError("The text must have at least one token to predict, but has none.")
    return Perplexity(lines, total)
