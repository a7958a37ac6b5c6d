"""`release_model`: write a checkpoint in the format in which it is served, and verify it against the checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.checkpoint.directory import resolve_path
from onmt_llm.cli.checks import corpora_problems
from onmt_llm.cli.inputs import corpus_files, missing_files, missing_models, missing_options, option_files
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.data import BatchConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.release import ReleaseOptions
from onmt_llm.errors import DataError, Problem
from onmt_llm.log import logger

if TYPE_CHECKING:
    from onmt_llm.data.spec import PipelineSpec
    from onmt_llm.releasing.formats import ReleaseReport

USAGE = "release_model -model CHECKPOINT -output DIRECTORY -quantization int8"

TEXTS = ("verify_text", "calibration_text")


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(JOB, _release, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    reads = [*model_files(loaded, "release", ("model",)), *option_files(loaded, "release", TEXTS)]
    reads += corpus_files(loaded) if _takes_corpora(loaded) else []
    return Paths(reads, output_option(loaded, "release", "output", is_folder=loaded.job.release.format != "pytorch"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "release", ("model", "output"), USAGE)
    yield from missing_models(loaded, "release", ("model",))
    yield from missing_files(loaded, option_files(loaded, "release", TEXTS))
    if _takes_corpora(loaded):
        yield from corpora_problems(loaded)
        yield from missing_files(loaded, corpus_files(loaded))


def _takes_corpora(loaded: Loaded[Any]) -> bool:
    """Whether the release is calibrated on the corpora of a training run."""
    options: ReleaseOptions = loaded.job.release
    return options.quality == "calibrated" and options.calibration_text is None and bool(loaded.job.corpora.data)


JOB = CheckedJob("release_model", _paths, _problems)


def _release(loaded: Loaded[Any]) -> int:
    release_model(loaded)
    return 0


def release_model(loaded: Loaded[Any]) -> ReleaseReport:
    """Release as the configuration says, and log the differences from the model."""
    options: ReleaseOptions = loaded.job.release
    model, output = (required(loaded, "release", name, USAGE) for name in ("model", "output"))
    text = _read(loaded, "verify_text")
    calibration = _corpora(loaded, model) if _takes_corpora(loaded) else _read(loaded, "calibration_text")
    from onmt_llm.releasing import NumberFormat, release  # torch and ctranslate2 are imported here

    report = release(
        model,
        output,
        format=options.format,
        quantization=NumberFormat(
            *(options.quantization, options.quality, calibration), options.keep_float, options.compare_plain
        ),
        verify=options.verify,
        text=text,
        card=loaded.job.card,
        force=options.force,
    )
    plain = report.get("plain_figures", {})
    for name, value in report.get("figures", {}).items():
        logger.info("%-20s %.6g%s", name, value, f" (plain: {plain[name]:.6g})" if name in plain else "")
    logger.info("Released to %s: %s.", output, report["verdict"])
    return report


def _corpora(loaded: Loaded[Any], model: str) -> PipelineSpec:
    """The training corpora, prepared for a model, one example to a batch and each once."""
    from onmt_llm.data.spec import PipelineSpec, split_corpora
    from onmt_llm.text.codec import Codec

    train, _ = split_corpora(loaded.job.corpora.data)
    data = loaded.job.corpora.model_copy(update={"epochs": 1})
    return PipelineSpec(train, data, Codec.open(resolve_path(model)), batching=BatchConfig(batch_size=1))


def _read(loaded: Loaded[Any], option: str) -> str | None:
    """The text of the file that an option names."""
    path = getattr(loaded.job.release, option)
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{option} must be a UTF-8 text file, but {path} cannot be read ({error}).") from error


if __name__ == "__main__":
    raise SystemExit(main())
