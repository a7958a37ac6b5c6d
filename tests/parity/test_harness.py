"""Tasks of lm-evaluation-harness with our engines and with lm-eval's own `hf` model: the same figures and answers."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

import tiny
from onmt_llm.cli.convert import main as convert
from onmt_llm.cli.eval import main as evaluate
from onmt_llm.cli.release import main as release
from onmt_llm.errors import ConfigError, UnsupportedError
from onmt_llm.generate.open import open_engine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
WORDS = ["a", "cat", "the", "of", "ünder", "house", "runs", "blue", "7", "sees"]
TASK = "task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {file}}}}}\ntest_split: test\n"
BODIES = {
    "rolling": "output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{text}}'\n"
    "metric_list: [{metric: word_perplexity}]\n",
    "answers": "output_type: generate_until\ndoc_to_text: '{{text}}'\ndoc_to_target: ''\n"
    "metric_list: [{metric: exact_match}]\ngeneration_kwargs: {until: ['e'], max_gen_toks: 12, do_sample: false}\n",
}

BEGINS_WITH_BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}
"""As in LLaMA's tokenizer.json; that of the tiny model leaves it to the library that loads it."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of ours, the same for transformers, and the data of tasks."""
    folder, rng = tmp_path_factory.mktemp("harness"), random.Random(1)
    tiny.write_chat_model(folder / "model")
    assert convert(["-model_dir", str(folder / "model"), "-to", "hf", "-output", str(folder / "hf")]) == 0
    file = folder / "hf/tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "post_processor": BEGINS_WITH_BOS}))

    def text(words: int) -> str:
        return " ".join(rng.choices(WORDS, k=words))

    for split, count in (("dev", 3), ("test", 6)):
        (folder / "mmlu" / split).mkdir(parents=True)
        for subject in ("colours", "pets"):
            rows = [f'"{text(8)}?",{",".join(text(2) for _ in "ABCD")},{rng.choice("ABCD")}\n' for _ in range(count)]
            (folder / "mmlu" / split / f"{subject}_{split}.csv").write_text("".join(rows), encoding="utf-8")
    (folder / "tasks").mkdir()
    for name, body in BODIES.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"text": text(n)}) + "\n" for n in (3, 8, 20, 90)), encoding="utf-8")
        (folder / "tasks" / f"{name}.yaml").write_text(TASK.format(name=f"local_{name}", file=file) + body)
    return folder


@pytest.fixture(scope="module")
def pairs(folder: Path) -> Any:
    """(task, kind) -> the results of our engine and of lm-eval's."""
    pytest.importorskip("lm_eval")
    from lm_eval.models.huggingface import HFLM

    from onmt_llm.eval.harness import HarnessModel, TaskOptions, load_tasks

    theirs = HFLM(pretrained=str(folder / "hf"), dtype="float32", batch_size=4, device="cpu")

    def found(task: str, kind: str, model: str = "model") -> tuple[list[Any], list[Any]]:
        options = TaskOptions([task], str(folder / "tasks"), str(folder / "mmlu"), num_fewshot=2)
        (loaded,) = load_tasks(options)["tasks"].values()
        loaded.build_all_requests(rank=0, world_size=1)
        ours = HarnessModel(open_engine(folder / model, device="cpu"))
        assert (ours.max_length, ours.prefix_token_id) == (theirs.max_length, theirs.prefix_token_id)
        return tuple(getattr(each, kind)(loaded.instances, disable_tqdm=True) for each in (ours, theirs))  # type: ignore[return-value]

    return found


def test_log_likelihoods_of_choices(pairs: Any, folder: Path) -> None:
    options = ["-quantization", "float32", "-verify", "off"]
    assert release(["-model", str(folder / "model"), "-output", str(folder / "ct2"), *options]) == 0
    for model in ("model", "ct2"):
        ours, theirs = pairs("mmlu_pets", "loglikelihood", model)
        assert len(ours) == 24
        assert [log_prob for log_prob, _ in ours] == pytest.approx([log_prob for log_prob, _ in theirs], abs=1e-4)
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def test_log_likelihoods_of_texts(pairs: Any) -> None:
    ours, theirs = pairs("local_rolling", "loglikelihood_rolling")
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-5)


def test_answers(pairs: Any) -> None:
    ours, theirs = pairs("local_answers", "generate_until")
    assert ours == theirs and any(ours)


def test_results_of_a_model_are_those_of_lm_eval(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from onmt_llm.eval.harness import TaskOptions, load_tasks

    names = ["mmlu", "local_rolling", "local_answers"]
    output = folder / "results.json"
    argv = ["-tasks", ",".join(names), "-mmlu", str(folder / "mmlu"), "-include_path", str(folder / "tasks")]
    assert evaluate(["tasks", "-model", str(folder / "model"), "-device", "cpu", "-output", str(output), *argv]) == 0
    assert "|mmlu" in capsys.readouterr().out
    found = json.loads(output.read_text())
    tasks = load_tasks(TaskOptions(names, str(folder / "tasks"), str(folder / "mmlu")))
    model = HFLM(pretrained=str(folder / "hf"), dtype="float32", batch_size=4, device="cpu")
    wanted = lm_eval.evaluate(lm=model, task_dict=tasks, log_samples=False)
    for task, figures in wanted["results"].items():
        for name in ("acc,none", "word_perplexity,none", "exact_match,none"):
            if name in figures:
                assert found["results"][task][name] == pytest.approx(figures[name], rel=1e-4)
    assert found["groups"]["mmlu"]["acc,none"] == wanted["groups"]["mmlu"]["acc,none"]


def test_the_checkpoints_of_a_run_are_evaluated_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (5, 10):
        tiny.write_chat_model(folder / f"run_step_{step}")
    (folder / "run_results.jsonl").write_text('{"step": 5, "BLEU": 3.5}\n')
    argv = ["tasks", "-save_model", str(folder / "run"), "-tasks", "mmlu", "-mmlu", str(folder / "mmlu")]
    assert evaluate([*argv, "-device", "cpu"]) == 0
    assert not (folder / ".run_results.jsonl.lock").exists()
    rows = [json.loads(line) for line in (folder / "run_results.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10] and rows[0]["BLEU"] == 3.5
    assert all(0 <= row["mmlu acc"] <= 1 and row["mmlu_pets acc"] <= 1 for row in rows)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("run_*") if path.is_file()}
    assert len(before) == 3
    assert evaluate([*argv, "-device", "cpu"]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is evaluated again"


def test_prompts_of_a_chat_template_are_those_of_the_codec(folder: Path) -> None:
    from onmt_llm.eval.harness import HarnessModel
    from onmt_llm.text.templates.message import Message

    model = HarnessModel(open_engine(folder / "model", device="cpu"))
    text = model.apply_chat_template([{"role": "user", "content": "a </s> cat"}])
    codec = open_engine(folder / "model", device="cpu").codec
    assert codec.vocab.tokens(model.tok_encode(text)) == codec.encode_chat([Message("user", "a </s> cat")])
    context, answer = model._encode_pair(text, "blue")
    assert context == model.tok_encode(text) and codec.decode(codec.vocab.tokens(answer)).strip() == "blue"


def test_what_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from onmt_llm.eval.harness import HarnessModel, generation_options

    with pytest.raises(ConfigError, match=r"do_sample, temperature, top_k, top_p .* but one is num_beams"):
        generation_options({"until": "x", "num_beams": 3})
    model = tiny.write_checkpoint(tmp_path / "seq2seq", tiny.seq2seq())
    with pytest.raises(UnsupportedError, match="needs a decoder-only model"):
        HarnessModel(open_engine(model))
    argv = ["tasks", "-model", str(folder / "model"), "-mmlu", str(folder / "mmlu"), "-tasks"]
    assert evaluate([*argv, "mmlu_petz"]) == 2
    assert "'mmlu_petz' is not one" in capsys.readouterr().err
    assert evaluate([*argv, "mmlu_pets", "-num_fewshot", "9"]) == 2
    assert "'num_fewshot' must be at most 3, the examples of mmlu_pets, but is 9" in capsys.readouterr().err
    assert evaluate(["tasks", "-save_model", str(tmp_path / "m"), "-tasks", "x"]) == 2
    assert "must be the prefix of at least one checkpoint" in capsys.readouterr().err
    (folder / "mmlu/test/odd_test.csv").write_text("question,1,2,3,B\n")
    assert evaluate([*argv, "mmlu_odd"]) == 3
    assert "odd_dev.csv" in capsys.readouterr().err
    (folder / "mmlu/dev/odd_dev.csv").write_text("question,1,2,3,4,B\n")
    assert evaluate([*argv, "mmlu_odd"]) == 3
    assert "row 1 has 5 columns" in capsys.readouterr().err
    (folder / "mmlu/test/odd_test.csv").unlink()


@pytest.mark.parametrize(
    ("changes", "code", "sentence"),
    [
        ({"exact_match}": "no_such_metric}"}, 2, "must be described as lm-eval expects, but are not (KeyError"),
        ({"{{text}}": "{{no_such_field}}"}, 2, "'no_such_field' is undefined"),
        ({"'{{text}}'": "!function needs.prompt"}, 2, "need a package that cannot be imported here (No module named"),
        ({"answers.jsonl": "missing.jsonl"}, 3, "must be at hand or on the Hugging Face Hub, but cannot be loaded"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, str], code: int, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (folder / "tasks/answers.yaml").read_text().replace("local_answers", "odd_task")
    for before, after in changes.items():
        assert before in text
        text = text.replace(before, after)
    (tmp_path / "odd.yaml").write_text(text)
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    argv = ["-include_path", str(tmp_path), "-tasks", "odd_task", "-device", "cpu"]
    assert evaluate(["tasks", "-model", str(folder / "model"), *argv]) == code
    assert sentence in capsys.readouterr().err
