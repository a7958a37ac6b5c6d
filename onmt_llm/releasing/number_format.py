"""`NumberFormat`: the options of a release that decide how its numbers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onmt_llm.config.convert import Quality
from onmt_llm.errors import ConfigError

INT8 = ("int8", "int8_float32", "int8_float16", "int8_bfloat16")


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a release are stored; the attributes are options of `release_model`.

    Attributes:
        quantization: CTranslate2's name of a number format; None = float32.
        quality: What is done to the weights before they are rounded to int8; None = "rotated" where it can be done.
        keep_float: Names of layers that are not quantised, as `nn.wrap.match` understands them.
    """

    quantization: str | None = None
    quality: Quality | None = None
    keep_float: Sequence[str] = ()

    @property
    def is_int8(self) -> bool:
        return self.quantization in INT8

    def check(self) -> None:
        """Refuse settings of int8 where nothing is int8.

        Raises:
            ConfigError: They are given, and the quantisation is another.
        """
        given = [f"quality: {self.quality}"] if self.quality else []
        given += [f"keep_float: {', '.join(self.keep_float)}"] if self.keep_float else []
        if given and not self.is_int8:
            raise ConfigError(
                f"{' and '.join(given)} must go with a quantization to int8, but quantization is "
                f"{self.quantization or 'not set'}."
            )
