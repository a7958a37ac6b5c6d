"""`NumberFormat`: the options of a release that decide how its numbers are stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onmt_llm.config.release import Quality
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.errors import ConfigError

INT8 = ("int8", "int8_float32", "int8_float16", "int8_bfloat16")


@dataclass(frozen=True)
class NumberFormat:
    """How the numbers of a release are stored; the attributes are options of `release_model`.

    Attributes:
        quantization: CTranslate2's name of a number format; None = float32.
        quality: What is done to the weights before they are rounded to int8; None = "rotated" where it can be done.
        calibration: What a "calibrated" release is made with: a text, or the corpora of a training run.
        keep_float: Names of layers that are not quantised, as `nn.wrap.match` understands them.
        compare_plain: The report has the figures of a "plain" release too.
    """

    quantization: str | None = None
    quality: Quality | None = None
    calibration: str | PipelineSpec | None = None
    keep_float: Sequence[str] = ()
    compare_plain: bool = False

    @property
    def is_int8(self) -> bool:
        return self.quantization in INT8

    def check(self) -> None:
        """Refuse settings that contradict each other.

        Raises:
            ConfigError: Some are for int8, but nothing is int8, or calibration and its text are not given together.
        """
        given = [f"quality: {self.quality}"] if self.quality else []
        given += [f"keep_float: {', '.join(self.keep_float)}"] if self.keep_float else []
        given += ["compare_plain: true"] if self.compare_plain else []
        if given and not self.is_int8:
            raise ConfigError(
                f"{' and '.join(given)} must be left out without a quantization to int8, but quantization is "
                f"{self.quantization or 'not set'}."
            )
        if (self.quality == "calibrated") != (self.calibration is not None):
            raise ConfigError(
                "quality: calibrated and calibration_text need each other, but quality is "
                f"{self.quality or 'not set'} {'without' if self.calibration is None else 'with'} a text.",
                hint="give --calibration_text FILE with text of the kind that the model will read, or --config FILE "
                "of the run that trained the model, whose corpora are then used",
            )
