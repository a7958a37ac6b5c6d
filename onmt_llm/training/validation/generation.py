"""Validation by generation: the model translates or answers the validation corpora, and metrics score its output.

Decoding is that of the engines. The text is reconstructed from the tokens by undoing the transforms in reverse order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onmt_llm.atomic import write_text
from onmt_llm.config.data import BatchConfig
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.learning import ValidationConfig
from onmt_llm.data.eval_prompts import Prompt
from onmt_llm.data.transforms.build import undo_all
from onmt_llm.errors import DataError
from onmt_llm.generate.engine import Hypothesis
from onmt_llm.generate.scorers import Scorer, one_line
from onmt_llm.generate.torch.engine import TorchEngine
from onmt_llm.log import logger
from onmt_llm.nn.transformer import Transformer
from onmt_llm.text.codec import Codec
from onmt_llm.text.placeholders import to_line
from onmt_llm.training.optim.precision import Precision
from onmt_llm.training.process.dist import World


def dump_folder(settings: ValidationConfig, save_model: str) -> Path | None:
    """The folder for predictions; None if they are not written."""
    if settings.dump_preds:
        return Path(settings.dump_preds)
    return Path(f"{save_model}_preds") if settings.scoring_debug else None


class GenerationValidator:
    """Generates answers to the prompts of the validation corpora and scores them.

    Args:
        prompts: Prompts with reference answers.
        skipped: Number of skipped examples, for the log.
        scorers: The metrics.
        codec: Tokeniser and vocabulary of the model.
        settings: How to decode, and what to write.
        batching: How many prompts are decoded together.
        folder: Folder for predictions; None = they are not written.

    Raises:
        DataError: There is no prompt.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        *,
        skipped: int = 0,
        scorers: Sequence[Scorer],
        codec: Codec,
        settings: ValidationConfig,
        batching: BatchConfig,
        folder: Path | None = None,
    ) -> None:
        if not prompts:
            raise DataError(
                "valid_metrics need validation examples with a prompt and an answer, but there is none.",
                hint="the prompt of a language model is path_src beside path_tgt, a JSONL prompt, or an untrained part",
            )
        if skipped:
            logger.info("valid_metrics: %d validation examples are used, %d skipped.", len(prompts), skipped)
        self._prompts = prompts
        self._references = [prompt.reference for prompt in prompts]
        self._scorers = scorers
        self._codec = codec
        self._options = GenerationConfig(beam_size=settings.valid_beam_size, max_length=settings.valid_max_length)
        self._batching = batching
        self._folder = folder
        self._writes_comparison = settings.scoring_debug

    def score(self, model: Transformer, step: int, *, precision: Precision, world: World) -> dict[str, float]:
        """Scores of the model's answers, equal on all ranks; decoding is without dropout.

        Returns:
            Scores by metric, of all corpora together; if there are several, also of each, as `<corpus>/<metric>`.
        """
        predictions = self._predict(model, precision=precision, world=world)
        if world.is_main and self._folder is not None:
            self._write(self._folder, step, predictions)
        scores = {scorer.name: scorer.of_texts(predictions, self._references) for scorer in self._scorers}
        corpora: dict[str, list[int]] = {}
        for place, prompt in enumerate(self._prompts):
            corpora.setdefault(prompt.corpus, []).append(place)
        for name, places in corpora.items() if len(corpora) > 1 else ():
            said, wanted = ([texts[place] for place in places] for texts in (predictions, self._references))
            scores |= {f"{name}/{scorer.name}": scorer.of_texts(said, wanted) for scorer in self._scorers}
        return scores

    def _predict(self, model: Transformer, *, precision: Precision, world: World) -> list[str]:
        """All predictions in order; each rank generates every n-th of them."""
        mine = self._prompts[world.rank :: world.size]
        model.eval()
        try:
            with precision.compute(world.device):
                answers = self._answers(model, mine)
        finally:
            model.train()
        texts = [self._text(prompt, best[0].tokens) for prompt, best in zip(mine, answers, strict=True)]
        parts = [record["texts"] for record in world.gather({"texts": texts})]
        return [parts[place % world.size][place // world.size] for place in range(len(self._prompts))]

    def _answers(self, model: Transformer, prompts: Sequence[Prompt]) -> list[list[Hypothesis]]:
        """Answers to prompts; those between the same languages are decoded together."""
        pairs: dict[tuple[str, str], list[int]] = {}
        for place, prompt in enumerate(prompts):
            pairs.setdefault(prompt.codec.languages, []).append(place)
        answers: list[list[Hypothesis]] = [[] for _ in prompts]
        for places in pairs.values():
            found = TorchEngine(model, prompts[places[0]].codec).generate(
                [prompts[place].tokens for place in places],
                self._options,
                batch_size=self._batching.valid_batch_size,
                batch_type=self._batching.batch_type,
            )
            for place, hypotheses in zip(places, found, strict=True):
                answers[place] = hypotheses
        return answers

    def _text(self, prompt: Prompt, tokens: Sequence[str]) -> str:
        control = self._codec.tokenizer.control_tokens
        return undo_all(prompt.transforms, [token for token in tokens if token not in control]).strip()

    def _write(self, folder: Path, step: int, predictions: Sequence[str]) -> None:
        _write_lines(folder / f"preds.valid_step_{step}.txt", predictions)
        _write_lines(folder / "refs.valid.txt", self._references)
        if self._writes_comparison:
            rows = zip(self._prompts, self._references, predictions, strict=True)
            blocks = [
                f"SOURCE: {to_line(prompt.text)}\nREF: {one_line(reference)}\nPRED: {one_line(prediction)}\n"
                for prompt, reference, prediction in rows
            ]
            write_text(folder / f"debug.valid_step_{step}.txt", "\n".join(blocks))


def _write_lines(path: Path, texts: Sequence[str]) -> None:
    write_text(path, "".join(f"{one_line(text)}\n" for text in texts))
