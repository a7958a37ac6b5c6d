"""`release_model`: write a checkpoint in the format in which it is served, and verify it against the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.inputs import missing_files, missing_models, missing_options, option_files
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.convert import ReleaseOptions
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import DataError, Problem
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.releasing.formats import ReleaseReport

USAGE = "release_model -model CHECKPOINT -output DIRECTORY -quantization int8"

TEXTS = ("verify_text", "calibration_text")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(JOB, _release, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    reads = [*model_files(loaded, "release", ("model",)), *option_files(loaded, "release", TEXTS)]
    return Paths(reads, output_option(loaded, "release", "output", is_folder=loaded.job.release.format != "pytorch"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "release", ("model", "output"), USAGE)
    yield from missing_models(loaded, "release", ("model",))
    yield from missing_files(loaded, option_files(loaded, "release", TEXTS))


JOB = CheckedJob("release_model", _paths, _problems)


def _release(loaded: Loaded[Any]) -> int:
    release_model(loaded)
    return 0


def release_model(loaded: Loaded[Any]) -> ReleaseReport:
    """Release as the configuration says, and log the differences from the model."""
    options: ReleaseOptions = loaded.job.release
    model, output = (required(loaded, "release", name, USAGE) for name in ("model", "output"))
    text, calibration_text = _read(loaded, "verify_text"), _read(loaded, "calibration_text")
    from onmt_llm.releasing import NumberFormat, release  # torch and ctranslate2 are imported here

    report = release(
        model,
        output,
        format=options.format,
        quantization=NumberFormat(options.quantization, options.quality, calibration_text, options.keep_float),
        verify=options.verify,
        text=text,
        card=loaded.job.card,
        force=options.force,
    )
    for name, value in report.get("figures", {}).items():
        logger.info("%-20s %.6g", name, value)
    logger.info("Released to %s: %s.", output, report["verdict"])
    return report


def _read(loaded: Loaded[Any], option: str) -> str | None:
    """The text of the file that an option names."""
    path = getattr(loaded.job.release, option)
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option} must be a UTF-8 text file, but {path} cannot be read ({error}).") from error


if __name__ == "__main__":
    raise SystemExit(main())
