"""Tasks of lm-evaluation-harness with any engine. This module needs lm_eval."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lm_eval
from jinja2 import TemplateError
from lm_eval.api.group import Group
from lm_eval.api.model import TemplateLM
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window, make_table
from tqdm import tqdm

from onmt_llm.atomic import write_text
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import ConfigError, DataError, UnsupportedError
from onmt_llm.eval.mmlu import MMLU, all_subjects, subject_task, subjects_in
from onmt_llm.registry import nearest
from onmt_llm.text.templates.message import Message

if TYPE_CHECKING:
    from onmt_llm.generate.engine import Engine

Results = dict[str, Any]
"""What lm-eval returns: `results`, `groups`, `configs`, `versions`, `n-shot` and more."""

_REQUESTS = 2048
"""Requests, in the order of their tokens, that are scored at once."""
_MAX_TOKENS = 256
"""Length of a generated answer for which a task sets none, as in lm-eval."""
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class TaskOptions:
    """What to evaluate.

    Attributes:
        tasks: Names of tasks.
        include_path: Folder with YAML files of further tasks.
        mmlu: Folder with the CSV files of MMLU.
        num_fewshot: Examples in each prompt; None = the task's own number.
        limit: Documents of each task; None = all.
        chat: Put the prompts into the chat template.
    """

    tasks: Sequence[str]
    include_path: str | None = None
    mmlu: str | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    chat: bool = False


class HarnessModel(TemplateLM):
    """An engine as a model of lm-eval.

    Args:
        engine: Of a decoder-only model.
        batch_size: Prompts that are answered together.

    Raises:
        UnsupportedError: The model is an encoder-decoder.
    """

    def __init__(self, engine: Engine, *, batch_size: int = 16) -> None:
        super().__init__()
        self._engine, self._codec, self._batch_size = engine, engine.codec, batch_size
        if not self._codec.config.model.is_decoder_only:
            raise UnsupportedError(
                "onmt_llm_eval tasks needs a decoder-only model, but this one is an encoder-decoder.",
                hint="onmt_llm_eval score compares its answers with references",
            )
        self._prompts: dict[str, list[int]] = {}

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        specials = self._codec.config.specials
        token = specials.eos if specials.eos in self._codec.vocab else specials.bos
        if token is None or token not in self._codec.vocab:
            raise UnsupportedError(
                "A model for these tasks must have a token that starts or ends a text, but has none."
            )
        return self._codec.vocab.ids([token])[0]

    @property
    def prefix_token_id(self) -> int:
        """The token before the first one of a text: `bos`, or else the end token."""
        bos = self._codec.config.specials.bos
        return self._codec.vocab.ids([bos])[0] if bos is not None and bos in self._codec.vocab else self.eot_token_id

    @property
    def max_length(self) -> int:
        """Maximum number of tokens of a context and its continuation."""
        return self._codec.config.model.max_position

    @property
    def tokenizer_name(self) -> str:
        """A hash of the tokeniser, for lm-eval's cache of requests."""
        return self._codec.tokenizer.fingerprint

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text; None = with `bos`, if the model's texts begin with it."""
        if string in self._prompts:
            return self._prompts[string]
        tokens = self._codec.tokenizer.encode(string)
        return self._codec.vocab.ids(tokens if add_special_tokens is False else self._codec.framed(tokens))

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._prompts:
            return super()._encode_pair(context, continuation)
        # a chat template has control tokens, into which no text is encoded
        tokens = self._codec.tokenizer.encode(continuation, continuation=True)
        return self._prompts[context], self._codec.vocab.ids(tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as text, whose tokens are remembered.

        Raises:
            ConfigError: The model has no chat template, or the task begins the answer itself.
        """
        if self._codec.template is None:
            raise ConfigError("'chat' needs a model that has a chat template, but this one has none.")
        if not add_generation_prompt:
            raise ConfigError("'chat' must not be used for a task that begins the answers itself (gen_prefix), but is.")
        messages = [Message(turn["role"], turn["content"]) for turn in chat_history]
        segments = self._codec.template.render(messages, generation_prompt=True)
        text = "".join("".join(segment.tokens or ()) if segment.text is None else segment.text for segment in segments)
        self._prompts[text] = self._codec.vocab.ids(self._codec.encode_segments(segments))
        return text

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        pairs = [self._cut(context, continuation) for _, context, continuation in requests]
        order = sorted(range(len(pairs)), key=lambda place: [*pairs[place][0], *pairs[place][1]])
        found: dict[int, tuple[float, bool]] = {}
        for start in tqdm(range(0, len(order), _REQUESTS), desc="log-likelihoods", disable=disable_tqdm):
            places = order[start : start + _REQUESTS]
            contexts, continuations = (
                [self._codec.vocab.tokens(pairs[place][side]) for place in places] for side in (0, 1)
            )
            for place, score in zip(places, self._engine.score_continuations(contexts, continuations), strict=True):
                found[place] = score.log_prob, score.is_greedy
        return [found[place] for place in range(len(pairs))]

    def _cut(self, context: list[int], continuation: list[int]) -> tuple[list[int], list[int]]:
        """The end of a context that fits; its last token is read, but the continuation's is not."""
        room = self.max_length + 1 - len(continuation)
        if room < 1:
            raise DataError(
                f"A continuation must have at most max_position = {self.max_length} tokens, but has "
                f"{len(continuation)}."
            )
        return context[-room:], continuation

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, cut into windows where it is longer than the model's context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for place, request in enumerate(requests):
            (text,) = request.args
            parts = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, continuation in map(make_disjoint_window, parts):
                windows.append((None, context, continuation))
                owners.append(place)
        totals = [0.0] * len(requests)
        for place, (log_prob, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[place] += log_prob
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each context, up to the first of its stop strings."""
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(place)
        answers = [""] * len(requests)
        for places in groups.values():
            options = generation_options(requests[places[0]].args[1])
            room = self.max_length - options.max_length
            if room < 1:
                raise ConfigError(
                    f"A task's answers must be shorter than max_position, {self.max_length}, but may have "
                    f"{options.max_length} tokens."
                )
            prompts = [self._codec.vocab.tokens(self._context(requests[place].args[0])[-room:]) for place in places]
            for start in tqdm(range(0, len(prompts), self._batch_size), desc="answers", disable=disable_tqdm):
                part = slice(start, start + self._batch_size)
                found = self._engine.generate(prompts[part], options, batch_size=self._batch_size, places=places[part])
                for place, hypotheses in zip(places[part], found, strict=True):
                    answers[place] = hypotheses[0].text
        return answers

    def _context(self, text: str) -> list[int]:
        return self.tok_encode(text) or [self.prefix_token_id]


def generation_options(arguments: dict[str, Any]) -> GenerationConfig:
    """Our options for the `generation_kwargs` of a task.

    Raises:
        ConfigError: One of them is not known.
    """
    rest = dict(arguments)
    until = rest.pop("until", None) or []
    lengths = [rest.pop(name) for name in _LENGTHS if name in rest]
    temperature = float(rest.pop("temperature", 0.0) or 0.0)
    samples = bool(rest.pop("do_sample", temperature > 0))
    top_k, top_p = int(rest.pop("top_k", 0) or 0), float(rest.pop("top_p", 1.0) or 1.0)
    penalty = float(rest.pop("repetition_penalty", 1.0) or 1.0)
    if rest:
        raise ConfigError(
            f"The generation_kwargs of a task must be among until, {', '.join(_LENGTHS)}, do_sample, temperature, "
            f"top_k, top_p and repetition_penalty, but one is {next(iter(rest))}."
        )
    drawn = {"random_sampling_topk": top_k, "random_sampling_topp": top_p, "random_sampling_temp": temperature or 1.0}
    return GenerationConfig(
        max_length=int(lengths[0]) if lengths else _MAX_TOKENS,
        stop=[stop for stop in ([until] if isinstance(until, str) else until) if stop],
        repetition_penalty=penalty,
        **(drawn if samples else {}),
    )


def evaluate(engine: Engine, options: TaskOptions, *, name: str, batch_size: int = 16) -> Results:
    """Evaluate a model on tasks.

    Args:
        engine: The model.
        options: The tasks.
        name: Of the model, for the results.
        batch_size: Prompts that are answered together.

    Returns:
        lm-eval's results, with `config` and `date`.

    Raises:
        ConfigError: A task is unknown, or is not described as lm-eval expects.
        DataError: The data of a task cannot be loaded.
        UnsupportedError: The model is an encoder-decoder, or a task needs a package that is missing.
    """
    model = HarnessModel(engine, batch_size=batch_size)
    began = time.time()
    tasks = load_tasks(options)
    with _task_errors(options.tasks):
        results = lm_eval.evaluate(
            lm=model,
            task_dict=tasks,
            limit=options.limit,
            log_samples=False,
            apply_chat_template=options.chat,
            fewshot_as_multiturn=options.chat,
        )
    config = {"model": name, "limit": options.limit, "batch_size": batch_size, "chat": options.chat}
    return {**results, "config": config, "date": began, "lm_eval_version": lm_eval.__version__}


def load_tasks(options: TaskOptions) -> Any:
    """The tasks, with the number of examples in their prompts."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every option that a task has
    subjects = subjects_in(Path(options.mmlu)) if options.mmlu else []
    ours = {MMLU, *(f"{MMLU}_{subject}" for subject in subjects)} if subjects else set()
    # lm-eval reads all files of its own tasks, for about ten seconds
    manager = TaskManager(include_path=options.include_path, include_defaults=not ours.issuperset(options.tasks))
    specs = list(_specs(options, manager, subjects, ours))
    with _task_errors(options.tasks):
        try:
            loaded = manager.load(specs)
        except (OSError, ValueError) as error:
            raise DataError(
                f"The data of {', '.join(options.tasks)} must be at hand or on the Hugging Face Hub, but cannot be "
                f"loaded ({type(error).__name__}: {error}).",
                hint="-mmlu FOLDER and -include_path FOLDER read local files",
            ) from error
        except (KeyError, TypeError, AttributeError) as error:
            raise _invalid(options.tasks, error) from error
    for name, task in loaded["tasks"].items():
        own = task.get_config("num_fewshot")
        if options.num_fewshot is not None and own != 0:
            _check_examples(name, task, options.num_fewshot)
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)  # lm-eval's default
    return loaded


@contextlib.contextmanager
def _task_errors(tasks: Sequence[str]) -> Iterator[None]:
    """A context in which tasks that need another package, or whose prompts cannot be made, are refused."""
    try:
        yield
    except ImportError as error:
        raise UnsupportedError(
            f"The tasks {', '.join(tasks)} need a package that cannot be imported here ({error}).",
            hint="install it with pip",
        ) from error
    except TemplateError as error:
        raise _invalid(tasks, error) from error


def _invalid(tasks: Sequence[str], error: Exception) -> ConfigError:
    return ConfigError(
        f"The tasks {', '.join(tasks)} must be described as lm-eval expects, but are not "
        f"({type(error).__name__}: {error})."
    )


def _check_examples(name: str, task: Any, wanted: int) -> None:
    known = len(task.sampler.df) if hasattr(task, "sampler") else 0
    if wanted > known:
        raise ConfigError(f"'num_fewshot' must be at most {known}, the examples of {name}, but is {wanted}.")


def _specs(
    options: TaskOptions, manager: TaskManager, subjects: list[str], ours: set[str]
) -> Iterator[str | ConfigurableTask | Group]:
    """What lm-eval is asked for: names of its tasks, and the subjects of MMLU in CSV files, for the names in `ours`."""
    wanted = [name for name in options.tasks if name in ours]
    for name in options.tasks:
        if name in ours:
            continue
        if name not in manager.all_tasks:
            guess = nearest(name, [*ours, *manager.all_tasks])
            raise ConfigError(
                f"'tasks' must be names of tasks of lm-eval, or of {options.include_path or 'include_path'}, but "
                f"'{name}' is not one.",
                hint=f"did you mean '{guess}'?" if guess else "lm-eval ls tasks lists them",
            )
        yield name
    if wanted:
        chosen = subjects if MMLU in wanted else [name.removeprefix(f"{MMLU}_") for name in wanted]
        tasks = [subject_task(Path(options.mmlu or ""), subject) for subject in chosen]
        yield from [all_subjects(tasks)] if MMLU in wanted else tasks


def tables(results: Results) -> str:
    """The results as lm-eval prints them."""
    groups = make_table(results, "groups") if results.get("groups") else ""
    return f"{make_table(results)}\n{groups}".rstrip()


def write_results(path: Path, results: Results) -> None:
    """Write lm-eval's results as JSON."""
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False, default=handle_non_serializable) + "\n")


def scores(results: Results) -> dict[str, float]:
    """One figure for each task and metric, `mmlu_anatomy acc`; standard errors are left out."""
    found = {}
    for task, figures in {**results["results"], **results.get("groups", {})}.items():
        for key, value in figures.items():
            metric = key.removesuffix(",none").replace(",", " ")
            if isinstance(value, int | float) and not isinstance(value, bool) and "_stderr" not in key and "," in key:
                found[f"{task} {metric}"] = float(value)
    return found
