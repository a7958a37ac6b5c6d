"""`chatbot/simple_inference.py`: answer a file of prompts and write answers, scores and the time taken as JSON.

Writes `<output_directory>/outputs_<model>_<mode>.json` with `pred_answers` and `score` (for each input line, in order,
a list of the `n_best` answers; an empty line has empty answers) and `duration` in seconds, without loading the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.atomic import write_text
from onmt_llm.cli.inference import load_inference_config, model_mode, open_configured_engine
from onmt_llm.cli.lines.answers import answer_prompts, phrase_table, prompt_builder
from onmt_llm.cli.outputs import Output, Paths, check_outputs, model_files
from onmt_llm.cli.run import CheckedJob, required, run_job
from onmt_llm.config.chat import Mode, SimpleInferenceConfig
from onmt_llm.config.loading.load import Loaded
from onmt_llm.data.readers import read_lines
from onmt_llm.generate.engine import Engine
from onmt_llm.log import logger

USAGE = "simple_inference.py -input_file PROMPTS -inference_config_file YAML -inference_mode py -output_directory DIR"


def main(argv: Sequence[str] | None = None) -> int:
    return run_job(CheckedJob("simple_inference", lambda loaded: Paths()), _simple_inference, argv)


def _simple_inference(loaded: Loaded[Any]) -> int:
    config: SimpleInferenceConfig = loaded.job
    source = required(loaded, "files", "input_file", USAGE)
    directory = required(loaded, "files", "output_directory", USAGE)
    inference = load_inference_config(config.answering)
    model = inference.job.inference.model[0]
    target = output_file(directory, model, model_mode(model))
    inputs = [("'input_file'", source, ("input_file",)), *model_files(inference, "inference", ("model",))]
    check_outputs(loaded, Paths(inputs, [Output("output_directory", str(target))]))
    lines = list(read_lines(source))
    results = answer_lines(open_configured_engine(inference), lines, inference)
    write_text(target, json.dumps(results, ensure_ascii=False, indent=1) + "\n")
    logger.info("%d inputs answered in %.1f s: %s", len(lines), results["duration"], target)
    return 0


def answer_lines(engine: Engine, lines: Sequence[str], loaded: Loaded[Any]) -> dict[str, Any]:
    """The content of the JSON file for these lines, answered as `onmt_llm_translate` answers them."""
    begun = time.perf_counter()
    prompts = prompt_builder(engine.codec, loaded)(lines)
    answers = answer_prompts(engine, prompts, loaded.job, table=phrase_table(loaded.job))
    return {
        "pred_answers": [[hypothesis.text for hypothesis in hypotheses] for hypotheses in answers],
        "score": [[hypothesis.score for hypothesis in hypotheses] for hypotheses in answers],
        "duration": time.perf_counter() - begun,
    }


def output_file(directory: str, model: str, mode: Mode) -> Path:
    """`outputs_<model>_<mode>.json` in `directory`; the model's name is the last component of its path, as given."""
    return Path(directory) / f"outputs_{Path(model).name}_{mode}.json"


if __name__ == "__main__":
    raise SystemExit(main())
