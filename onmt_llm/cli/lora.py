"""`onmt_llm_lora`: merge an adapter into its base model, concatenate them, or import and export peft adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from onmt_llm.cli.inputs import missing_models, missing_options
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.lora_tool import LoraToolOptions
from onmt_llm.errors import Problem
from onmt_llm.log import logger

USAGE = (
    "onmt_llm_lora -action merge | concat -base_model BASE -lora_weights ADAPTER -output CHECKPOINT | "
    "-action import -base_model BASE -lora_weights PEFT_FOLDER -output ADAPTER | "
    "-action export -lora_weights ADAPTER -output PEFT_FOLDER"
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("onmt_llm_lora", _paths, _problems), _lora, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    models = model_files(loaded, "adapters", ("base_model", "lora_weights"))
    return Paths(list(models), output_option(loaded, "adapters", "output", is_folder=True))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of our own models; peft adapters, and the base name that only peft reads, are not checked."""
    action = loaded.job.adapters.action
    needs = ["lora_weights", "output"] + ["base_model"] * (action != "export")
    yield from missing_options(loaded, "adapters", needs, USAGE)
    ours = ["lora_weights"] * (action != "import") + ["base_model"] * (action != "export")
    yield from missing_models(loaded, "adapters", ours)


def _lora(loaded: Loaded[Any]) -> int:
    options: LoraToolOptions = loaded.job.adapters
    adapter, output = (required(loaded, "adapters", name, USAGE) for name in ("lora_weights", "output"))
    from onmt_llm.checkpoint.formats.peft.read import import_peft  # torch is imported here
    from onmt_llm.checkpoint.formats.peft.write import export_peft
    from onmt_llm.checkpoint.merge import concat_lora, merge

    if options.action == "export":
        card = loaded.job.card
        export_peft(adapter, output, base_name=options.base_model or card.hub_base, card=card, overwrite=options.force)
        logger.info("%s -> %s (peft)", adapter, output)
        return 0
    base = required(loaded, "adapters", "base_model", USAGE)
    if options.action == "import":
        import_peft(adapter, base, output, overwrite=options.force)
    elif options.action == "merge":
        merge(base, adapter, output, dtype=options.dtype, overwrite=options.force)
    else:
        concat_lora(base, adapter, output, overwrite=options.force)
    logger.info("%s + %s -> %s (%s)", base, adapter, output, options.action)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
