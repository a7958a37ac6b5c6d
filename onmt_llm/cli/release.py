"""`release_model`: write a checkpoint in the form in which it is served, verified against the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import run
from onmt_llm.config.convert import ReleaseConfig
from onmt_llm.config.render import print_config
from onmt_llm.errors import ConfigError, DataError
from onmt_llm.log import logger, setup_logging


def main(argv: Sequence[str] | None = None) -> int:
    return run(_release, argv)


def _release(argv: Sequence[str]) -> int:
    loaded = load_job("release_model", argv)
    if loaded.switches["print_config"]:
        print(print_config(loaded))
        return 0
    config: ReleaseConfig = loaded.job
    setup_logging()
    for note in loaded.notes:
        logger.info(note)
    options = config.release
    for name, value in (("model", options.model), ("output", options.output)):
        if not value:
            raise ConfigError(
                f"'{name}' must be given, but is not.", hint="release_model -model CHECKPOINT -output DIRECTORY"
            )
    text = None if options.verify_text is None else _read(Path(options.verify_text))

    from onmt_llm.release import (
        release,
    )  # torch and ctranslate2 are imported here, after the options are known to be right

    report = release(
        options.model or "",
        options.output or "",
        format=options.format,
        quantization=options.quantization,
        verify=options.verify,
        text=text,
        force=options.force,
    )
    for name, value in report.get("figures", {}).items():
        logger.info("%-20s %.6g", name, value)
    logger.info("Released to %s: %s.", options.output, report["verdict"])
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"verify_text must be a UTF-8 text file, but {path} cannot be read so ({error}).") from error


if __name__ == "__main__":
    raise SystemExit(main())
