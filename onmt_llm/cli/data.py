"""`onmt_llm_data report | sample | export | pack | merge | verify`: inspect, select and tokenise the data of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.checkpoint.directory import open_directory, resolve_path
from onmt_llm.cli.checks import training_problems
from onmt_llm.cli.outputs import Output, Paths, output_option
from onmt_llm.cli.run import required, run_action
from onmt_llm.cli.train import training_inputs
from onmt_llm.config.data import BatchConfig
from onmt_llm.config.data_tool import DataToolConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.overrides import check_task
from onmt_llm.data import pack
from onmt_llm.data.export import export
from onmt_llm.data.inspection.html import report_page, samples_page
from onmt_llm.data.inspection.report import measure, mixture, table, to_json
from onmt_llm.data.inspection.trace import collect
from onmt_llm.data.run_codec import checkpoint_codec, new_codec, updated_codec
from onmt_llm.data.spec import PipelineSpec
from onmt_llm.errors import ConfigError, Problem
from onmt_llm.text.codec import Codec
from onmt_llm.training.checkpointing.train_from import resolve_train_from

USAGE = (
    "onmt_llm_data report -config x.yaml | sample -config x.yaml | export -config x.yaml | pack -config x.yaml | "
    "merge -shards FOLDER FOLDER -output FOLDER | verify -shards FOLDER"
)
DEFAULT_SAMPLE = 20
PAGES = {"report": ("report.json", "report.html"), "sample": ("samples.html",)}
_OF_SHARDS = ("merge", "verify")
_READERS = {
    "shards": _OF_SHARDS,
    "output": ("merge",),
    "engine": ("pack",),
    "ray_address": ("pack",),
    "export_as": ("export",),
    "format": ("export",),
}


def main(argv: Sequence[str] | None = None) -> int:
    return run_action("onmt_llm_data", argv, ACTIONS, USAGE, paths=_paths, checks=_problems, readers=_READERS)


def _paths(action: str, loaded: Loaded[Any]) -> Paths:
    if action in _OF_SHARDS:
        shards = [("'shards'", folder, ("shards",)) for folder in loaded.job.look.shards]
        return Paths(shards, output_option(loaded, "look", "output", is_folder=True))
    writes = [Output("save_data", str(_folder(loaded.job)), collects=True)]
    writes += [Output("save_data", str(_folder(loaded.job) / name)) for name in PAGES.get(action, ())]
    return Paths(list(training_inputs(loaded)), writes)


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    if action not in _OF_SHARDS:
        yield from training_problems(loaded)


def _run_codec(config: DataToolConfig) -> Codec:
    """The codec of a new model, or of the checkpoint in `train_from` with the vocabulary that the run gives it."""
    run = resolve_train_from(config)
    if run.start.train_from is None:
        return new_codec(run).codec
    path = resolve_path(run.start.train_from)
    open_directory(path)  # refuses a checkpoint whose configuration is damaged
    codec = Codec.open(path)
    check_task(run.start.model_task, codec.config.model, path)
    text = checkpoint_codec(run, codec, codec.config, path=path)
    return updated_codec(run, text, path).codec if run.start.update_vocab else text.codec


def _report(loaded: Loaded[Any]) -> int:
    config: DataToolConfig = loaded.job
    data = config.corpora
    outputs = _outputs(config, *PAGES["report"])
    n_sample = data.n_sample or -1
    reports = measure(_spec(config), n_sample=n_sample, processes=config.look.num_threads)
    print(table(reports))
    what = "all records" if n_sample < 0 else f"the first {n_sample:,} records"
    shares = mixture(reports, data.mixing_temperature)
    page = report_page(reports, shares, title="Data report", about=f"Based on {what} of each corpus, read once.")
    for path, text in zip(
        outputs, (json.dumps(to_json(reports, shares), indent=1, ensure_ascii=False), page), strict=True
    ):
        _write(path, text)
    return 0


def _sample(loaded: Loaded[Any]) -> int:
    config: DataToolConfig = loaded.job
    data = config.corpora
    if data.n_sample < 0:
        raise ConfigError(f"n_sample must be at least 1 for a page of samples, but is {data.n_sample}.")
    (output,) = _outputs(config, *PAGES["sample"])
    number = data.n_sample or DEFAULT_SAMPLE
    collected = collect(_spec(config), number=number)
    looked_at = ", ".join(f"{each.looked_at:,} of {each.corpus}" for each in collected)
    about = f"The first {number:,} examples of each corpus, and what was dropped before them; read: {looked_at}."
    _write(output, samples_page(collected, title="Data samples", about=about))
    return 0


def _pack(loaded: Loaded[Any]) -> int:
    config: DataToolConfig = loaded.job
    look = config.look
    run = pack.on_ray(look.ray_address) if look.engine == "ray" else pack.on_this_machine(look.num_threads)
    written = pack.pack(_spec(config), _folder(config) / "packed", run=run)
    for name, path in written.items():
        print(f"{name}: {path}")
        if not config.corpora.data[name].path_packed:
            print(f"  to train on it, set path_packed: {path.parent} in the corpus {name}")
    return 0


def _export(loaded: Loaded[Any]) -> int:
    config: DataToolConfig = loaded.job
    look, folder = config.look, _folder(config) / "export"
    names = [f"export/{name}.{look.format}" for name in config.corpora.data]
    (report,) = _outputs(config, "export/export.json", *names)[:1]
    written = export(_spec(config), folder, content=look.export_as, form=look.format, processes=look.num_threads)
    for name, (path, counts) in written.items():
        print(f"{name}: {path}\n  {counts.progress()}")
    _write(report, json.dumps({name: counts.to_dict() for name, (_, counts) in written.items()}, indent=1))
    return 0


def _merge(loaded: Loaded[Any]) -> int:
    output = required(loaded, "look", "output", USAGE)
    print(f"merged: {pack.merge([Path(folder) for folder in loaded.job.look.shards], Path(output))}")
    return 0


def _verify(loaded: Loaded[Any]) -> int:
    required(loaded, "look", "shards", USAGE)
    for folder in loaded.job.look.shards:
        print(f"{pack.verify(Path(folder))} files of {folder} are unchanged")
    return 0


def _spec(config: DataToolConfig) -> PipelineSpec:
    """The corpora, prepared for the model that the run trains."""
    data = config.corpora
    batching = BatchConfig(bucket_size=config.batching.bucket_size, packing="off")  # nothing is cut into batches here
    return PipelineSpec(data.data, data, _run_codec(config), seed=max(config.run.seed, 0), batching=batching)


def _folder(config: DataToolConfig) -> Path:
    """The output folder."""
    return Path(config.corpora.save_data or f"{config.run.save_model}_data")


def _outputs(config: DataToolConfig, *names: str) -> list[Path]:
    """Files to write below `save_data`.

    Raises:
        ConfigError: A file exists already.
    """
    paths = [_folder(config) / name for name in names]
    taken = next((path for path in paths if path.exists()), None)
    if taken and not config.corpora.overwrite:
        raise ConfigError(f"The output must not exist, but {taken} does.", hint="-overwrite replaces it")
    return paths


def _write(path: Path, text: str) -> None:
    write_text(path, text + "\n")
    print(f"written to {path}")


ACTIONS = {"report": _report, "sample": _sample, "export": _export, "pack": _pack, "merge": _merge, "verify": _verify}


if __name__ == "__main__":
    raise SystemExit(main())
