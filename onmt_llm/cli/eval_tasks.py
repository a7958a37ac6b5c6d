"""`onmt_llm_eval tasks`: tasks of lm-evaluation-harness, for one model or for the checkpoints of a run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.checkpoint.directory import read_manifest
from onmt_llm.cli.inference import open_models
from onmt_llm.config.evaluate import EvalConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import CheckpointError, DataError, Problem
from onmt_llm.optional import require
from onmt_llm.training.run_folder import pass_over, watched_checkpoints

USAGE = "onmt_llm_eval tasks -model CHECKPOINT -tasks TASK ... [-output results.json], or -save_model RUN [-watch 60]"


def problems(loaded: Loaded[Any]) -> Iterator[Problem]:
    """Problems of the options of this action."""
    harness = loaded.job.harness
    if not harness.tasks and "tasks" not in loaded.invalid:
        yield Problem("'tasks' must be given, but is not.", hint=USAGE)
    if bool(harness.save_model) == bool(loaded.job.measure.model):
        found = "both are" if harness.save_model else "neither is"
        yield Problem(f"'model' or 'save_model' must be given, but {found}.", hint=USAGE)
    if harness.save_model and loaded.job.measure.output:
        yield Problem(
            "'output' must be left out with 'save_model', but is given.", hint="each checkpoint has a file of its own"
        )
    if harness.watch and loaded.job.measure.model:
        yield Problem("'watch' needs 'save_model', but 'model' is given.", loaded.where("watch"), hint="remove 'watch'")
    for name in ("mmlu", "include_path"):
        folder = getattr(harness, name)
        if folder and not Path(folder).is_dir():
            sentence = f"'{name}' must be a folder that exists, but '{folder}' is not."
            yield Problem(sentence, loaded.where(name), kind=DataError)


def run_tasks(loaded: Loaded[Any]) -> int:
    """Evaluate the model, or the checkpoints of the run."""
    require("lm_eval", "onmt_llm_eval tasks", "onmt_llm[tasks]")
    from onmt_llm.eval import harness
    from onmt_llm.training.checkpoint_validation import locked

    config: EvalConfig = loaded.job
    if config.measure.model:
        results = _evaluate(config.measure.model, config)
        if config.measure.output:
            harness.write_results(Path(config.measure.output), results)
        return 0
    save_model = str(config.harness.save_model)
    figures = Path(f"{save_model}_results.jsonl")
    with locked(figures):
        for found, last in watched_checkpoints(save_model, every=config.harness.watch):
            for step, path in found.items():
                _evaluate_checkpoint(step, path, config, figures, last=last)
    return 0


def _evaluate(model: str, config: EvalConfig, **about: str) -> dict[str, Any]:
    """Evaluate one model, and print its results; `about` is added to what they say about the evaluation."""
    from onmt_llm.eval import harness

    options = harness.TaskOptions(**config.harness.model_dump(exclude={"save_model", "watch"}))
    results = harness.evaluate(
        open_models([model], config.engine), options, name=model, batch_size=config.engine.batch_size
    )
    results["config"] |= about
    print(harness.tables(results))
    return results


def _evaluate_checkpoint(step: int, path: Path, config: EvalConfig, file: Path, *, last: bool) -> None:
    """Evaluate a checkpoint unless its results are there; add its figures to those in a file."""
    from onmt_llm.eval import harness

    output = path.with_name(f"{path.name}_tasks.json")
    try:
        manifest = read_manifest(path)
        origin = {"weights": str(manifest and manifest.fingerprint), "request": _request(config)}
        if _origin(output) == origin:
            return
        _figures(file)  # before the work, in case that it cannot be read
        results = _evaluate(str(path), config, **origin)
    except (CheckpointError, OSError) as error:
        pass_over(path, error, last=last)
        return
    # The results come last: who is stopped before them evaluates the checkpoint again.
    rows = _figures(file)
    rows.setdefault(step, {"step": step}).update(harness.scores(results))
    write_text(file, "".join(json.dumps(rows[step]) + "\n" for step in sorted(rows)))
    harness.write_results(output, results)


def _request(config: EvalConfig) -> str:
    """What is asked, as a text that can be compared."""
    return config.harness.model_copy(update={"tasks": sorted(config.harness.tasks), "watch": 0}).model_dump_json()


def _origin(output: Path) -> dict[str, str] | None:
    """The checkpoint and the request of earlier results; None if there are none."""
    if not output.is_file():
        return None
    try:
        config = json.loads(output.read_text(encoding="utf-8"))["config"]
        return {"weights": config["weights"], "request": config["request"]}
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{output} must hold results of onmt_llm_eval tasks, but does not ({type(error).__name__}: {error}).",
            hint="move it away",
        ) from error


def _figures(path: Path) -> dict[int, dict[str, Any]]:
    """The figures of each step in a file of results; none if there is no such file."""
    found: dict[int, dict[str, Any]] = {}
    try:
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
            row = json.loads(line)
            found.setdefault(row["step"], {}).update(row)
        return found
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} must have a JSON object with 'step' in each line, but does not ({type(error).__name__}: {error}).",
            hint="repair the line, or move the file away",
        ) from error
