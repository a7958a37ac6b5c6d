"""Every numeric option of every command has bounds, and values beyond them are refused."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import Field, ValidationError

import onmt_llm.config
import onmt_llm.data.transforms
from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.cli.run import run
from onmt_llm.config.checkpoint import CheckpointConfig
from onmt_llm.config.loading.validation import number_hint
from onmt_llm.config.section import Section, options_of, types_in
from onmt_llm.errors import ConfigError

HUGE = 2**70
SENTINELS = {("sliding_window", "0"), ("feat_vec_size", "-1")}
"""OpenNMT-py's words for null, which `config.compat` translates."""
VALUES = {".nan": math.nan, ".inf": math.inf, "-.inf": -math.inf, "-1": -1, "0": 0, str(HUGE): HUGE, "true": True}


def numbers_in(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[type, list[Any]]]:
    """Each number in a field's type, with all bounds that are written on it."""
    if get_origin(annotation) is Annotated:
        inner, *notes = get_args(annotation)
        bounds = [each for note in notes for each in getattr(note, "metadata", [note])]
        yield from numbers_in(inner, (*metadata, *bounds))
    elif annotation in (int, float):
        yield annotation, [bound for bound in metadata if {"ge", "gt", "le", "lt"} & {*vars_of(bound)}]
    else:
        for argument in get_args(annotation):
            yield from numbers_in(argument)


def vars_of(bound: Any) -> dict[str, float]:
    return {side: getattr(bound, side) for side in ("ge", "gt", "le", "lt") if hasattr(bound, side)}


def allows(value: float, bounds: list[Any]) -> bool:
    compare = {"ge": float.__ge__, "gt": float.__gt__, "le": float.__le__, "lt": float.__lt__}
    return all(compare[side](float(value), float(b)) for bound in bounds for side, b in vars_of(bound).items())


def own_sections() -> set[type[Section]]:
    for package in (onmt_llm.config, onmt_llm.data.transforms):
        for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    found: set[type[Section]] = set()
    todo: list[type[Section]] = [Section]
    while todo:
        found |= {*(new := todo.pop().__subclasses__())}
        todo += new
    return {kind for kind in found if kind.__module__.startswith("onmt_llm.")}


def test_every_number_has_one_lower_and_one_upper_bound() -> None:
    kinds, seen = own_sections(), 0
    for kind in kinds:
        for name, info in kind.model_fields.items():
            for _, bounds in numbers_in(info.annotation, tuple(info.metadata)):
                sides = sorted(side[0] for bound in bounds for side in vars_of(bound))
                assert sides == ["g", "l"], f"{kind.__name__}.{name}: {bounds}"
                seen += 1
    assert len(kinds) > 50 and seen > 150


def test_defaults_are_within_their_bounds() -> None:
    for kind in own_sections():
        for name, info in kind.model_fields.items():
            if not info.is_required() and types_in(info.annotation) & {int, float}:
                try:
                    kind.model_validate({name: info.get_default(call_default_factory=True)})
                except ValidationError as error:
                    assert all(not finding["loc"] or finding["loc"][0] != name for finding in error.errors()), name


def tree_of(kind: type[Section], value: str) -> dict[str, Any]:
    """A value for every number of a section that must refuse it, shaped as the option is."""
    tree: dict[str, Any] = {}
    for name, info in kind.model_fields.items():
        wrong = [not fits(value, number, bounds) for number, bounds in numbers_in(info.annotation, (*info.metadata,))]
        if (info.json_schema_extra or {}) == {"derived": True} or (name, value) in SENTINELS:
            continue
        if wrong and all(wrong):
            lists = any(get_origin(each) is list for each in (info.annotation, *get_args(info.annotation)))
            by_name = (
                get_origin(info.annotation) is dict and value != "true"
            )  # of a truth value, the line above is said
            tree[name] = {"some": value} if by_name else [value] if lists else value
        for nested in (each for each in types_in(info.annotation) if isinstance(each, type)):
            # a list of sections, `src_features`, is written by training alone
            if issubclass(nested, Section) and name != "src_features" and (inner := tree_of(nested, value)):
                by_name = get_origin(info.annotation) is dict
                tree[name] = {"train" if name == "data" else "some": inner} if by_name else inner
    return tree


def fits(text: str, number: type, bounds: list[Any]) -> bool:
    value = VALUES[text]
    return math.isfinite(value) and value is not True and allows(value, bounds)


def lines_of(tree: dict[str, Any], depth: int = 0, path: str = "") -> Iterator[tuple[str, str | None]]:
    """Lines of YAML, each with the dotted name of the value that stands in it."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield " " * depth + f"{key}:", None
            yield from lines_of(value, depth + 1, f"{path}{key}.")
        else:
            yield " " * depth + f"{key}: {value}".replace("'", ""), path + key


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("command", JOBS)
def test_what_is_out_of_bounds_is_one_sentence_with_its_place(command: str, value: str, tmp_path: Path) -> None:
    job = JOBS[command]
    tree: dict[str, Any] = {}
    transforms: dict[str, Any] = {}
    for info in job.section.model_fields.values():
        tree |= tree_of(info.annotation, value)  # type: ignore[arg-type]
    for kind in job.extra().values():
        transforms |= tree_of(kind, value)
    tree |= transforms
    if not tree:
        return
    if "data" in tree:
        tree["data"]["train"] |= transforms
    written = list(lines_of(tree))
    (tmp_path / "x.yaml").write_text("\n".join(line for line, _ in written))
    with pytest.raises(ConfigError) as caught:
        load_job(command, ["-config", str(tmp_path / "x.yaml")])
    said = str(caught.value).splitlines()
    for number, (_, name) in enumerate(written, 1):
        if name:
            found = [line for line in said if f"x.yaml:{number}  " in line]
            assert len(found) == 1 and f"'{name}' must be" in found[0] and "but is" in found[0], (name, found)
    flat = {name: text for name, text in tree.items() if not isinstance(text, dict)}
    flags = [word for name, text in flat.items() for word in (f"-{name}", str(text).strip("[']"))]
    with pytest.raises(ConfigError) as caught:
        load_job(command, flags)
    for name in flat:
        found = [line for line in str(caught.value).splitlines() if line.strip().startswith(f"-{name}  ")]
        assert len(found) == 1 and f"'{name}' must be" in found[0], (name, found)


@pytest.mark.parametrize("text", ["0", "-1"])
def test_what_is_within_bounds_is_taken(text: str) -> None:
    """Zero and minus one are words of OpenNMT-py for many options."""
    taken = 0
    for job in JOBS.values():
        for name, option in options_of(job.section, job.extra()).items():
            found = list(numbers_in(option.info.annotation, (*option.info.metadata,)))
            if found and not option.is_mapping and all(fits(text, *each) for each in found):
                kinds = {**{n: i.annotation for n, i in job.section.model_fields.items()}, **job.extra()}
                value = [int(text)] if option.is_list else int(text)
                try:
                    kinds[option.section].model_validate({name: value})  # type: ignore[union-attr]
                except ValidationError as error:  # of several options together
                    assert all(not finding["loc"] for finding in error.errors()), name
                taken += 1
    assert taken > 10


class Plugin(Section):
    """What a plug-in may declare: numbers without bounds."""

    ratio: float = 1.0
    times: list[int] = [1]
    choice: int | bool = 1
    small: Annotated[int, Field(le=3)] = 1


@pytest.mark.parametrize(
    "values",
    [
        {"ratio": math.nan},
        {"ratio": -math.inf},
        {"ratio": True},
        {"times": [HUGE]},
        {"times": [True]},
        {"small": -HUGE},
    ],
)
def test_numbers_without_bounds_are_finite_all_the_same(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Plugin.model_validate(values)
    assert Plugin.model_validate({"choice": True}).choice is True


def test_a_checkpoint_has_the_same_bounds() -> None:
    with pytest.raises(ValidationError, match="norm_eps"):
        CheckpointConfig.model_validate({"model": {"norm_eps": math.nan}})


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-dropout", "1.5"], "'dropout' must be < 1, but is 1.5"),
        (["-heads", "0"], "'heads' must be >= 1, but is 0"),
        (["-seed", str(2**64)], "'seed' must be <= 9223372036854775807"),
        (["--set", "data.train.weight=.inf"], "'data.train.weight' must be a finite number, but is inf"),
        (["-accum_count", "0"], "'accum_count' must be >= 1, but is 0"),
        (["-batch_size", "9" * 5000], "'batch_size' must be"),
        (["-batch_size", "true"], "'batch_size' must be a whole number, but is true"),
        (["-batch_size", "8.5"], "'batch_size' must be a whole number, but is 8.5.\n"),
        (["-batch_size", "0x2"], "'batch_size' must be a whole number, but is '0x2'.\n"),
        (["--set", 'tgt_vocab="a\\0b"'], "'tgt_vocab' must not contain the character NUL.\n"),
        (["--set", 'data={train: {path_src: [x, "\\0"]}}'], "'data' must not contain the character NUL.\n"),
        (
            ["-save_model", "/"],
            "can begin with, as in run/model, but is '/'.\n",
        ),
        (
            ["-save_model", "a/" + "x" * 300],
            "'save_model' must end in a name that checkpoints can begin with, as in run/model, but has 300 bytes.\n",
        ),
        (["--", "x"], "but '--' does not"),
        (["-max_time", "abc"], "'max_time' must be a time such as 11h30m, 23:30:00 or 3600 (seconds), but is 'abc'.\n"),
    ],
)
def test_one_sentence_and_exit_code_2(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    def work(words: Any) -> int:
        load_job("onmt_llm_train", words)
        return 0

    assert run(work, argv) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.split("hint:")[0].count("\n") == 1 and len(said) < 200
    assert says in said


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1e-4x", "1e-4"), ("1,000", "1000"), ("1_000_000", "1000000"), ("1,2", None), ("1:30", None), ("0x2", None)],
)
def test_a_number_is_suggested_only_where_one_was_meant(text: str, meant: str | None) -> None:
    assert number_hint(text) == meant


@pytest.mark.parametrize(
    ("words", "stop"), [(["5", "a b"], ["5", "a b"]), (["[x, 5]"], ["x", "5"]), (["null"], ["null"])]
)
def test_texts_on_the_command_line_stay_as_they_are(words: list[str], stop: list[str]) -> None:
    assert load_job("onmt_llm_translate", ["-stop", *words]).job.generation.stop == stop


def test_an_empty_text_is_no_stop() -> None:
    with pytest.raises(ConfigError, match="'stop' must not be empty"):
        load_job("onmt_llm_translate", ["-stop", ""])


def test_negative_numbers_are_no_flags() -> None:
    job = load_job("onmt_llm_translate", ["-alpha", "-1e-1", "-random_sampling_topk", "-1", "-seed", "-1"]).job
    assert (job.generation.alpha, job.generation.random_sampling_topk) == (-0.1, -1)
