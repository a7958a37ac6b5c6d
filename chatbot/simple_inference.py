"""Answer a file of prompts and write answers, scores and the time it took as JSON.

    python chatbot/simple_inference.py -input_file input_examples.txt -inference_config_file translate_opts_py.yaml \
        -inference_mode py -output_dir outputs

writes `outputs/outputs_<model>_py.json` with `pred_answers` and `score` (for each line of the input, in its order, a
list of the `n_best` answers; an empty line has empty answers) and `duration` in seconds, loading not included.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # a script's own folder comes first on the path, where `chatbot` would mean the file instead of its package
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from onmt_llm.cli.chat import Mode, load_inference_config
from onmt_llm.cli.run import run
from onmt_llm.cli.translate import encode_line, open_from
from onmt_llm.config.load import load
from onmt_llm.config.section import Section
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.data.readers import read_lines
from onmt_llm.errors import ConfigError
from onmt_llm.generate.engine import Engine
from onmt_llm.log import logger, setup_logging


class SimpleInferenceConfig(Section):
    """Prompts in, answers out."""

    input_file: str | None = None
    """Prompts, one a line, a line break inside a prompt written as ｟newline｠."""
    inference_config_file: str | None = None
    """Translate YAML: model, template and how answers are searched for or sampled."""
    inference_mode: Mode = "py"
    """Kind of the model: `py` = a checkpoint, `ct2` = a CTranslate2 release."""
    output_directory: str | None = None
    """Folder of the JSON file; made if it does not exist."""
    output_dir: str | None = None
    """Short for `output_directory`."""


class SimpleInferenceJob(Section):
    """Answer a file of prompts with one model."""

    simple_inference: SimpleInferenceConfig = SimpleInferenceConfig()


def main(argv: Sequence[str] | None = None) -> int:
    return run(_simple_inference, argv)


def _simple_inference(argv: Sequence[str]) -> int:
    options = load(SimpleInferenceJob, argv, prog="simple_inference.py").job.simple_inference
    output = options.output_directory or options.output_dir
    for name, value in {"input_file": options.input_file, "output_directory": output}.items():
        if not value:
            raise ConfigError(
                f"'{name}' must be given, but is not.", hint="simple_inference.py -help lists the options"
            )
    assert options.input_file and output
    setup_logging()
    loaded = load_inference_config(options.inference_config_file, options.inference_mode)
    lines = list(read_lines(options.input_file))
    results = answer_lines(open_from(loaded), lines, loaded.job)
    target = output_file(output, loaded.job.inference.model, options.inference_mode)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    logger.info("%d inputs answered in %.1f s: %s", len(lines), results["duration"], target)
    return 0


def answer_lines(engine: Engine, lines: Sequence[str], config: TranslateConfig) -> dict[str, Any]:
    """The content of the JSON file for these lines."""
    begun = time.perf_counter()
    prompts = [encode_line(line, engine.codec, config.inference.template) for line in lines]
    answers = engine.generate(
        prompts, config.generation, batch_size=config.engine.batch_size, batch_type=config.engine.batch_type
    )
    return {
        "pred_answers": [[hypothesis.text for hypothesis in hypotheses] for hypotheses in answers],
        "score": [[hypothesis.score for hypothesis in hypotheses] for hypotheses in answers],
        "duration": time.perf_counter() - begun,
    }


def output_file(directory: str, model: str, mode: Mode) -> Path:
    """`outputs_<model>_<mode>.json` in `directory`; the model's name is its last path component, as it was written."""
    return Path(directory) / f"outputs_{Path(model).name}_{mode}.json"


if __name__ == "__main__":
    raise SystemExit(main())
