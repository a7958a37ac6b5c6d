"""`onmt_llm_checkpoint`: inspect, verify, seal, average and consolidate checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from pathlib import Path
from typing import Any

from onmt_llm.cli.inputs import missing_models, missing_options
from onmt_llm.cli.outputs import Paths, model_files, output_option
from onmt_llm.cli.run import required, run_action
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import CheckpointError, Problem

USAGE = (
    "onmt_llm_checkpoint info -model CHECKPOINT | verify -model CHECKPOINT | seal -model CHECKPOINT | "
    "extract_vocabulary -model CHECKPOINT -out_file FILE -side src | "
    "extract_embeddings -model CHECKPOINT -out_file FILE -side src | "
    "average -models CHECKPOINT CHECKPOINT -output NEW | "
    "consolidate -model CHECKPOINT -output NEW | export -model CHECKPOINT -output NEW"
)


def main(argv: Sequence[str] | None = None) -> int:
    return run_action("onmt_llm_checkpoint", argv, ACTIONS, USAGE, paths=_paths, checks=_problems, readers=_READERS)


def _paths(_: str, loaded: Loaded[Any]) -> Paths:
    writes = [
        *output_option(loaded, "checkpoint", "output", is_folder=True),
        *output_option(loaded, "checkpoint", "out_file"),
    ]
    return Paths(list(model_files(loaded, "checkpoint", ("model", "models"))), writes)


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "checkpoint", _NEEDS.get(action, ()), USAGE)
    yield from missing_models(loaded, "checkpoint", ("model", "models"), releases=True, readable=False)


_NEEDS = {
    "info": ("model",),
    "verify": ("model",),
    "seal": ("model",),
    "extract_vocabulary": ("model", "out_file"),
    "extract_embeddings": ("model", "out_file"),
    "average": ("models", "output"),
    "consolidate": ("model", "output"),
    "export": ("model", "output"),
}

_COPIES = ("average", "consolidate", "export")
_EXTRACTS = ("extract_vocabulary", "extract_embeddings")
_READERS = {
    "model": [action for action, needed in _NEEDS.items() if "model" in needed],
    "models": ("average",),
    "output": _COPIES,
    "force": _COPIES,
    "fp32": ("average",),
    "out_file": _EXTRACTS,
    "side": _EXTRACTS,
}


def _info(loaded: Loaded[Any]) -> int:
    from onmt_llm.checkpoint.provenance import read_provenance
    from onmt_llm.checkpoint.store import Checkpoint

    checkpoint = Checkpoint.open(required(loaded, "checkpoint", "model", USAGE))
    config = checkpoint.config
    names = checkpoint.names()
    print(f"path         {checkpoint.path}")
    print(f"source       {config.source}")
    print(f"parameters   {sum(prod(checkpoint.shape(name)) for name in names):,} in {len(names)} tensors")
    print(f"tokeniser    {config.tokenizer.kind} {config.tokenizer.file or ''}")
    print(f"template     {config.template}")
    if config.adapter is not None:
        spec = config.adapter
        kinds = ["rsLoRA"] * spec.rslora + ["DoRA"] * spec.dora + [spec.init] * (spec.init != "default")
        print(f"adapter      rank {spec.rank}, alpha {spec.alpha:g} on {', '.join([*spec.layers, *kinds])}")
        print(f"base         {spec.base} {spec.base_fingerprint[:16]}")
    if config.expansion is not None:
        blocks = config.expansion
        share = f", lerp {blocks.lerp:g}" if blocks.type == "concat" else ""
        print(f"expansion    {blocks.type} at {', '.join(blocks.blocks)}{share}")
        if blocks.base:
            print(f"base         {blocks.base} {blocks.base_fingerprint[:16]}")
    for run in read_provenance(checkpoint.path).runs:
        corpora = ", ".join(corpus.name for corpus in run.corpora)
        print(f"trained      {run.step} steps from {run.base or 'new weights'} on {corpora}")
    print(f"fingerprint  {checkpoint.fingerprint}")
    for field, value in config.model.model_dump(exclude_defaults=True).items():
        print(f"  {field}: {value}")
    return 0


def _verify(loaded: Loaded[Any]) -> int:
    model = required(loaded, "checkpoint", "model", USAGE)
    from onmt_llm.checkpoint.directory import find_damage, read_manifest, resolve_path
    from onmt_llm.checkpoint.store import Checkpoint
    from onmt_llm.generate.open import find_release
    from onmt_llm.releasing.plain import find_pytorch_damage

    if Path(model).is_file() and Path(model).suffix == ".pt":
        _refuse(model, find_pytorch_damage(Path(model)))
        print("the release is unchanged since it was written")
        return 0
    release = find_release(model)
    directory = resolve_path(model) if release is None else release
    problems = find_damage(directory, thorough=True)
    _refuse(directory, problems)
    if release is None:
        checkpoint = Checkpoint.open(directory)
        checkpoint.codec()
        for _ in checkpoint.tensors():
            pass
    manifest = read_manifest(directory)
    assert manifest is not None  # otherwise `find_damage` has reported it
    tensors = sum(len(entry.tensors or ()) for entry in manifest.files.values())
    print(f"{len(manifest.files)} files with {tensors} tensors are unchanged since they were written")
    return 0


def _refuse(model: object, problems: Sequence[str]) -> None:
    if problems:
        raise CheckpointError(f"{model} must be as it was written, but is not: {'; '.join(problems[:10])}.")


def _seal(loaded: Loaded[Any]) -> int:
    model = required(loaded, "checkpoint", "model", USAGE)
    from onmt_llm.checkpoint.directory import resolve_path
    from onmt_llm.checkpoint.store import seal
    from onmt_llm.generate.open import find_release
    from onmt_llm.releasing.formats import seal_release

    release = find_release(model)
    changed = seal(model) if release is None else seal_release(release)
    for what in changed:
        print(f"before: {what}")
    print(f"the manifest of {release or resolve_path(model)} now describes its present files")
    return 0


def _extract_vocabulary(loaded: Loaded[Any]) -> int:
    model, output = required(loaded, "checkpoint", "model", USAGE), required(loaded, "checkpoint", "out_file", USAGE)
    from onmt_llm.checkpoint.extract import extract_vocabulary

    print(f"{extract_vocabulary(model, output, side=loaded.job.checkpoint.side)} tokens written to {output}")
    return 0


def _extract_embeddings(loaded: Loaded[Any]) -> int:
    model, output = required(loaded, "checkpoint", "model", USAGE), required(loaded, "checkpoint", "out_file", USAGE)
    from onmt_llm.checkpoint.extract import extract_embeddings

    print(f"{extract_embeddings(model, output, side=loaded.job.checkpoint.side)} vectors written to {output}")
    return 0


def _average(loaded: Loaded[Any]) -> int:
    required(loaded, "checkpoint", "models", USAGE)
    options, output = loaded.job.checkpoint, required(loaded, "checkpoint", "output", USAGE)
    from onmt_llm.checkpoint.average import average

    average(options.models, output, dtype="fp32" if options.fp32 else None, overwrite=options.force)
    print(f"the mean of {len(options.models)} checkpoints written to {output}")
    return 0


def _consolidate(loaded: Loaded[Any], *, state: bool = True) -> int:
    model, output = required(loaded, "checkpoint", "model", USAGE), required(loaded, "checkpoint", "output", USAGE)
    from onmt_llm.checkpoint.consolidate import consolidate

    count = consolidate(model, output, state=state, overwrite=loaded.job.checkpoint.force)
    print(f"{count} whole tensors written to {output}, {'with' if state else 'without'} the training state")
    return 0


def _export(loaded: Loaded[Any]) -> int:
    return _consolidate(loaded, state=False)


ACTIONS = {
    "info": _info,
    "verify": _verify,
    "seal": _seal,
    "extract_vocabulary": _extract_vocabulary,
    "extract_embeddings": _extract_embeddings,
    "average": _average,
    "consolidate": _consolidate,
    "export": _export,
}


if __name__ == "__main__":
    raise SystemExit(main())
