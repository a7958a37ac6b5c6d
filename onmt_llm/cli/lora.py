"""`onmt_llm_lora`: merge an adapter into its base, or put the two into one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

from onmt_llm.cli.convert import needed
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.run import run
from onmt_llm.config.convert import LoraToolConfig
from onmt_llm.config.render import print_config
from onmt_llm.log import logger, setup_logging

USAGE = "onmt_llm_lora -action merge -base_model BASE -lora_weights ADAPTER -output CHECKPOINT"


def main(argv: Sequence[str] | None = None) -> int:
    return run(_lora, argv)


def _lora(argv: Sequence[str]) -> int:
    loaded = load_job("onmt_llm_lora", argv)
    if loaded.switches["print_config"]:
        print(print_config(loaded))
        return 0
    config: LoraToolConfig = loaded.job
    setup_logging()
    for note in loaded.notes:
        logger.info(note)
    options = config.adapters
    base = needed("base_model", options.base_model, USAGE)
    adapter = needed("lora_weights", options.lora_weights, USAGE)
    output = needed("output", options.output, USAGE)
    from onmt_llm.checkpoint import surgery  # torch is imported here, after the options are known to be right

    action = surgery.merge_lora if options.action == "merge" else surgery.concat_lora
    action(base, adapter, output, overwrite=options.force)
    logger.info("%s + %s -> %s (%s)", base, adapter, output, options.action)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
