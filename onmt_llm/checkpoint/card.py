"""The model card: `README.md` of an export or release, with front matter for the Hugging Face Hub.

Everything in it comes from the model's configuration, its `provenance.json`, the report of its release and the options
of the card; what these do not say is left out.
(https://github.com/huggingface/hub-docs/blob/main/modelcard.md)
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from onmt_llm.checkpoint.provenance import (
    PROVENANCE_FILE,
    Provenance,
    TrainingRun,
    provenance_text,
    read_provenance,
)
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.config.card import CardOptions
from onmt_llm.config.checkpoint import CARD_FILE, CheckpointConfig
from onmt_llm.version import __version__

_DATASET = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


@dataclass(frozen=True)
class CardFormat:
    """What a card says about the format of a model.

    Attributes:
        name: The format, in words.
        library: `library_name` of the front matter: the library that loads the model; empty = none is named.
        usage: How the model is used: an example, in which `{folder}` stands for the model.
        relation: `base_model_relation`, if the base is on the Hub; empty = `finetune` if the model was trained here.
        language: The language of the example.
        report: The report of the release.
    """

    name: str
    library: str
    usage: str = ""
    relation: str = ""
    language: str = "python"
    report: Mapping[str, Any] | None = None


def card_files(checkpoint: Checkpoint, output: Path, form: CardFormat, options: CardOptions) -> dict[str, str]:
    """The model card and `provenance.json` of an export, by name.

    Args:
        checkpoint: The model that is exported.
        output: The directory that is written; its name is that of the model.
        form: The format of the export.
        options: What no file of the model says.
    """
    provenance = read_provenance(checkpoint.path)
    card = model_card(output.resolve().name, checkpoint.config, provenance, form, options)
    return {CARD_FILE: card, **({PROVENANCE_FILE: provenance_text(provenance)} if provenance.runs else {})}


def model_card(
    name: str, config: CheckpointConfig, provenance: Provenance, form: CardFormat, options: CardOptions
) -> str:
    """The text of the card.

    Args:
        name: Name of the model: that of its folder.
        config: The model's configuration.
        provenance: Its training runs.
        form: Its format.
        options: What no file of the model says.
    """
    front = yaml.safe_dump(_front_matter(config, provenance, form, options), sort_keys=False, allow_unicode=True)
    sections = [f"---\n{front}---", f"# {name}", _summary(config, form)]
    sections += ["## Training", *_training(config, provenance)] if provenance.runs else []
    scores = list(_scores(provenance, form.report or {}))
    sections += ["## Scores", *scores] if scores else []
    if form.usage:
        sections += ["## Use", f"```{form.language}\n{form.usage.replace('{folder}', name).strip()}\n```"]
    sections += ["## Versions", _versions(provenance, form.report or {})]
    return "\n\n".join(sections) + "\n"


def _front_matter(
    config: CheckpointConfig, provenance: Provenance, form: CardFormat, options: CardOptions
) -> dict[str, Any]:
    languages = options.language or sorted({code.split("_")[0] for code in config.languages.tokens})
    adapted = config.adapter is not None or any("lora_rank" in run.settings for run in provenance.runs)
    relation = form.relation or ("finetune" if provenance.runs else "")
    used = [corpus for run in provenance.runs for corpus in run.corpora]
    sources = [source.removeprefix("hf://datasets/").partition("@")[0] for corpus in used for source in corpus.sources]
    corpora = [*(corpus.name for corpus in used), *sources]
    values = {
        "language": [code for code in languages if re.fullmatch("[a-z]{2,3}", code)],
        "license": options.license,
        "library_name": form.library,
        "pipeline_tag": "text-generation" if config.model.is_decoder_only else ("translation" if languages else None),
        "base_model": options.hub_base,
        "base_model_relation": relation if options.hub_base else None,
        "datasets": [one for one in dict.fromkeys(corpora) if _DATASET.fullmatch(one)],
        "tags": ["onmt_llm", *["lora"] * adapted],
    }
    return {key: value for key, value in values.items() if value}


def _summary(config: CheckpointConfig, form: CardFormat) -> str:
    model = config.model
    kind = "A language model" if model.is_decoder_only else "An encoder-decoder model"
    what = f"A LoRA adapter (rank {config.adapter.rank})" if config.adapter is not None else kind
    lines = [f"{what}, {form.name}, written by onmt_llm {__version__}: {model.summary}."]
    if config.source:
        lines.append(f"Origin: {config.source}.")
    return "\n".join(lines)


def _training(config: CheckpointConfig, provenance: Provenance) -> Iterator[str]:
    for number, run in enumerate(provenance.runs, 1):
        if len(provenance.runs) > 1:
            yield f"### Run {number}"
        yield "\n".join(_of_run(run))


def _of_run(run: TrainingRun) -> Iterator[str]:
    base = f"{run.base} (fingerprint `{run.base_fingerprint[:16]}`)" if run.base_fingerprint else run.base
    yield f"- base: {base or 'none, new weights'}"
    if run.corpora:
        about = {corpus.name: ", ".join([f"weight {corpus.weight:g}", *corpus.sources]) for corpus in run.corpora}
        yield "- corpora: " + ", ".join(f"{name} ({said})" for name, said in about.items())
    yield f"- steps: {run.step}"
    yield from (f"- `{name}`: {_shown(value)}" for name, value in run.settings.items())


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _scores(provenance: Provenance, report: Mapping[str, Any]) -> Iterator[str]:
    last = provenance.runs[-1] if provenance.runs else TrainingRun()
    if last.scores:
        yield f"Validation at step {last.validated}:"
        yield _table(("metric", "value"), last.scores)
    if report.get("figures"):
        yield f"Compared with the checkpoint that it was made from ({report['verdict']}):"
        yield _table(("figure", "value"), report["figures"])


def _table(head: Sequence[str], rows: Mapping[str, float]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|--:|"]
    return "\n".join([*lines, *(f"| {name} | {value:.6g} |" for name, value in rows.items())])


def _versions(provenance: Provenance, report: Mapping[str, Any]) -> str:
    trained = provenance.runs[-1].versions if provenance.runs else {}
    parts = {
        "trained with": trained,
        "released with": report.get("versions", {}),
        "written by": {"onmt_llm": __version__},
    }
    return "\n".join(
        f"- {what} " + ", ".join(f"{name} {number}" for name, number in versions.items())
        for what, versions in parts.items()
        if versions
    )
