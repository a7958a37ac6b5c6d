"""`onmt_llm_convert`: other toolkits' models to checkpoints, and checkpoints to Hugging Face directories."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import run
from onmt_llm.config.convert import ConvertConfig
from onmt_llm.config.render import print_config
from onmt_llm.errors import ConfigError
from onmt_llm.log import logger, setup_logging

USAGE = "onmt_llm_convert -model_dir MODEL -output CHECKPOINT"


def main(argv: Sequence[str] | None = None) -> int:
    return run(_convert, argv)


def _convert(argv: Sequence[str]) -> int:
    loaded = load_job("onmt_llm_convert", argv)
    if loaded.switches["print_config"]:
        print(print_config(loaded))
        return 0
    config: ConvertConfig = loaded.job
    setup_logging()
    for note in loaded.notes:
        logger.info(note)
    options = config.conversion
    model, output = needed("model_dir", options.model_dir, USAGE), needed("output", options.output, USAGE)
    if options.to == "hf":
        from onmt_llm.checkpoint.export import (
            export_hf,
        )  # torch is imported here, after the options are known to be right

        export_hf(model, output, dtype=options.dtype, shard_size=options.shard_size, overwrite=options.force)
        return 0
    from onmt_llm.checkpoint.convert import convert

    convert(
        model,
        output,
        source=options.source,
        tokenizer_model=options.tokenizer_model,
        vocab_file=options.vocab_file,
        dtype=options.dtype,
        shard_size=options.shard_size,
        overwrite=options.force,
    )
    return 0


def needed(name: str, value: str | None, usage: str) -> str:
    """An option without which a command has nothing to do."""
    if not value:
        raise ConfigError(f"'{name}' must be given, but is not.", hint=usage)
    return value


if __name__ == "__main__":
    raise SystemExit(main())
