"""`onmt_llm_convert`: convert other toolkits' models to checkpoints, and back to Hugging Face, GGUF and OpenNMT-py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import check_output_file
from onmt_llm.cli.inputs import Input, missing_files, missing_models, missing_options, option_files
from onmt_llm.cli.outputs import Output, Paths, model_files, output_option
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.card import CardOptions
from onmt_llm.config.convert import ConversionOptions
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import CheckpointError, Problem
from onmt_llm.log import logger

FILE_ENDS = {"gguf": ".gguf", "opennmt": ".pt"}
"""Ends of the names of formats that are written as a file."""
USAGE = "onmt_llm_convert -model_dir MODEL -output CHECKPOINT"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(JOB, _convert, argv)


def _paths(loaded: Loaded[Any]) -> Paths:
    options: ConversionOptions = loaded.job.conversion
    end = FILE_ENDS.get(options.to or "")
    writes = output_option(loaded, "conversion", "output", is_folder=end is None)
    if writes and end:
        writes = [Output("output", _with_end(str(options.output), end))]
    models = list(model_files(loaded, "conversion", ("model_dir",)))
    if options.to is None and options.model_dir and Path(options.model_dir).is_file():
        # a file is read under this name only: MODEL.pt may become the checkpoint MODEL
        models = models[:1]
    return Paths([*models, *_text_files(loaded)], writes)


def _with_end(name: str, end: str) -> str:
    return name if name.endswith(end) else f"{name}{end}"


def _text_files(loaded: Loaded[Any]) -> Iterator[Input]:
    files = option_files(loaded, "conversion", ("tokenizer_model", "src_tokenizer_model", "vocab_file"))
    return (file for file in files if file[:2] != ("'tokenizer_model'", "none"))


def _problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    options: ConversionOptions = loaded.job.conversion
    yield from missing_options(loaded, "conversion", ("model_dir", "output"), USAGE)
    yield from missing_files(loaded, _text_files(loaded))
    if options.to == "gguf" and options.dtype is not None:
        sentence = f"'dtype' must be left out with 'to: gguf', but is {options.dtype}."
        yield Problem(sentence, loaded.where("dtype"), hint="use 'quantization'")
    if options.to != "gguf" and options.quantization is not None:
        sentence = f"'quantization' needs 'to: gguf', but is {options.quantization} without it."
        yield Problem(sentence, loaded.where("quantization"), hint="use 'dtype'")
    if options.to in _ELSEWHERE:
        hint = _ELSEWHERE[options.to].format(model=options.model_dir, output=options.output)
        yield Problem(f"'to' must not be {options.to}, which another command writes.", loaded.where("to"), hint=hint)
    if options.to is not None:
        yield from missing_models(loaded, "conversion", ("model_dir",))
    elif options.model_dir and not any(Path(options.model_dir + end).exists() for end in ("", ".pt")):
        sentence = f"'model_dir' must be a folder or a file that exists, but '{options.model_dir}' is not."
        yield Problem(sentence, loaded.where("model_dir"), kind=CheckpointError)


_ELSEWHERE = {
    "ctranslate2": "release_model -model {model} -output {output}",
    "litgpt": (
        "onmt_llm_convert -to hf -model_dir {model} -output {output}, then litgpt convert_to_litgpt {output} "
        "--model_name NAME, with the name that litgpt gives the model"
    ),
}
"""Formats that other commands write, and the commands."""

JOB = CheckedJob("onmt_llm_convert", _paths, _problems)


def _convert(loaded: Loaded[Any]) -> int:
    convert_model(loaded)
    return 0


def convert_model(loaded: Loaded[Any]) -> Path:
    """Convert as the configuration says; returns what was written."""
    options: ConversionOptions = loaded.job.conversion
    model = required(loaded, "conversion", "model_dir", USAGE)
    output = required(loaded, "conversion", "output", USAGE)
    if options.to is not None:
        return _EXPORTERS[options.to](model, output, options, loaded.job.card)
    if options.format is not None:
        logger.info("'format' has no effect here: checkpoints are directories of safetensors.")
    from onmt_llm.checkpoint.convert import convert

    return convert(
        model,
        output,
        source=options.source,
        tokenizer_model=options.tokenizer_model,
        src_tokenizer_model=options.src_tokenizer_model,
        vocab_file=options.vocab_file,
        ignore_unknown=options.ignore_unknown,
        dtype=options.dtype,
        shard_size=options.shard_size,
        overwrite=options.force,
    )


def _to_hf(model: str, output: str, options: ConversionOptions, card: CardOptions) -> Path:
    from onmt_llm.checkpoint.formats.huggingface.write import export_hf

    dtype, shard_size = options.dtype, options.shard_size
    return export_hf(model, output, dtype=dtype, shard_size=shard_size, card=card, overwrite=options.force)


def _to_meta(model: str, output: str, options: ConversionOptions, card: CardOptions) -> Path:
    from onmt_llm.checkpoint.formats.params_json.write import export_meta

    return export_meta(model, output, dtype=options.dtype, card=card, overwrite=options.force)


def _to_peft(model: str, output: str, options: ConversionOptions, card: CardOptions) -> Path:
    from onmt_llm.checkpoint.formats.peft.write import export_peft

    return export_peft(model, output, base_name=card.hub_base, card=card, overwrite=options.force)


def _to_gguf(model: str, output: str, options: ConversionOptions, _: CardOptions) -> Path:
    from onmt_llm.checkpoint.formats.gguf.write import export_gguf, write_modelfile

    modelfile = Path(_with_end(output, FILE_ENDS["gguf"])).with_suffix(".Modelfile")
    check_output_file(modelfile, overwrite=options.force)
    file = export_gguf(model, output, type=options.quantization or "f16", overwrite=options.force)
    write_modelfile(model, file, modelfile)
    return file


def _to_opennmt(model: str, output: str, options: ConversionOptions, _: CardOptions) -> Path:
    from onmt_llm.checkpoint.formats.opennmt.write import export_opennmt

    return export_opennmt(
        model,
        output,
        format=options.format or "pytorch",
        dtype=options.dtype,
        shard_size=options.shard_size,
        overwrite=options.force,
    )


_EXPORTERS = {"hf": _to_hf, "meta": _to_meta, "peft": _to_peft, "gguf": _to_gguf, "opennmt": _to_opennmt}
"""The values of `to` that this command writes; it refuses the others, in `_ELSEWHERE`."""


if __name__ == "__main__":
    raise SystemExit(main())
