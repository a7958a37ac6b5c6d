"""`onmt_llm_translate` (also `onmt_llm_generate`): answer a file of inputs, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onmt_llm.cli.run import needed, run_job
from onmt_llm.config.load import Loaded
from onmt_llm.config.translate import TranslateConfig
from onmt_llm.data.readers import read_lines
from onmt_llm.log import logger
from onmt_llm.text.features import parse_defaults
from onmt_llm.text.placeholders import from_line, to_line
from onmt_llm.text.templates import Message

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine, Hypothesis
    from onmt_llm.text.codec import Codec


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_translate", _translate, argv)


def _translate(loaded: Loaded[Any]) -> int:
    config: TranslateConfig = loaded.job
    source = needed(loaded, "inference", "src", "-src input.txt, or -src - for standard input")
    lines = list(read_lines(source))
    engine = open_from(loaded)
    if config.inference.src_feats_defaults is not None:
        codec = engine.codec
        codec.default_features = parse_defaults(config.inference.src_feats_defaults, len(codec.feature_vocabs))
    prompts = [encode_line(line, engine.codec, config.inference.template) for line in lines]
    answers = engine.generate(
        prompts, config.generation, batch_size=config.engine.batch_size, batch_type=config.engine.batch_type
    )
    _write(config, lines, answers)
    return 0


def open_from(loaded: Loaded[Any]) -> Engine:
    """The engine that a translate configuration describes."""
    model = needed(loaded, "inference", "model", "-model CHECKPOINT, or a CTranslate2 release")
    from onmt_llm.generate.engine import open_engine  # torch or ctranslate2 are imported here

    options = loaded.job.engine
    return open_engine(
        model,
        device=options.device,
        compute_type="int8" if options.precision == "int8" else options.compute_type,
        dtype=options.precision if options.precision not in ("", "int8") else None,
        threads=options.threads,
    )


def encode_line(line: str, codec: Codec, template: str | None) -> list[str]:
    """Tokens of one input line; an empty line has none, and keeps its place with an empty answer."""
    if not line.strip():
        return []
    text = from_line(line)
    if template is None:
        return codec.encode(text)
    return codec.encode_chat([Message("user", text)], template=None if template == "auto" else template)


def _write(config: TranslateConfig, lines: Sequence[str], answers: Sequence[Sequence[Hypothesis]]) -> None:
    target = config.inference.output
    texts = list(_output_lines(answers, with_score=config.inference.with_score))
    if config.engine.verbose:
        for number, (line, hypotheses) in enumerate(zip(lines, answers, strict=True), 1):
            logger.info("%d  %s", number, line)
            for hypothesis in hypotheses:
                logger.info("    %.4f  %s", hypothesis.score, to_line(hypothesis.text))
    content = "".join(text + "\n" for text in texts)
    if target == "-":
        sys.stdout.write(content)
        return
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    Path(target).write_text(content, encoding="utf-8", newline="\n")
    logger.info("%d answers to %d inputs written to %s", len(texts), len(lines), target)


def _output_lines(answers: Sequence[Sequence[Hypothesis]], *, with_score: bool) -> Iterator[str]:
    for hypotheses in answers:
        for hypothesis in hypotheses:
            text = to_line(hypothesis.text)
            yield f"{text}\t{hypothesis.score:.6f}" if with_score else text


if __name__ == "__main__":
    raise SystemExit(main())
