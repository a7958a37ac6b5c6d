"""Every command of OpenNMT-py's Vicuna tutorial, as written there, on a toy LLaMA in Meta's layout."""

from __future__ import annotations

import importlib.util
import json
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from commands import call
from onmt_llm.checkpoint.store import Checkpoint

ROOT = Path(__file__).parents[2]
HEADER = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "｟newline｠｟newline｠### Instruction:｟newline｠{}｟newline｠｟newline｠### Response:｟newline｠{}"
)
TOY_SHAPE = {"dec_layers: 32": "dec_layers: 2", "heads: 32": "heads: 4", "4096": "64", "11008": "192"}
QUESTIONS = [HEADER.format("Name a colour.", ""), "", HEADER.format("Say the weather｟newline｠in two lines.", "")]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tutorial's folder: toy weights, data, the reference YAMLs; run up to the merged and released model."""
    folder = tmp_path_factory.mktemp("recipe")
    spec = importlib.util.spec_from_file_location("make_toy", ROOT / "recipes/replicate_vicuna/make_toy_llama.py")
    assert spec and spec.loader
    toy = importlib.util.module_from_spec(spec)
    sys.modules["make_toy"] = toy
    spec.loader.exec_module(toy)
    toy.make_toy_llama(folder / "llama", shards=2)
    (folder / "dataAI").mkdir()
    for name, word in (("alpaca_clean.txt", "red"), ("sharegpt.txt", "blue")):
        lines = [
            HEADER.format(f"Name colour {n}.", f"It is {word}.｟newline｠｟newline｠Number {n}.") for n in range(40)
        ]
        (folder / "dataAI" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    text = (ROOT / "tests/data/replicate_vicuna.yaml").read_text(encoding="utf-8")
    for old, new in TOY_SHAPE.items():
        text = text.replace(old, new)
    (folder / "replicate_vicuna.yaml").write_text(text, encoding="utf-8")
    (folder / "input_examples.txt").write_text("\n".join(QUESTIONS) + "\n", encoding="utf-8")
    call(folder, ROOT / "tools/convert_llama.py", "--model_dir", "llama/7B/",
        "--tokenizer_model", "llama/tokenizer.model", "--output", "llama7B-vicuna-onmt")  # fmt: skip
    call(folder, ROOT / "tools/extract_vocabulary.py", "-model", "llama7B-vicuna-onmt", "-out_file", "vocab.txt",
        "-side", "src")  # fmt: skip
    train = ("onmt_llm_train", "-config", "replicate_vicuna.yaml")
    call(folder, *train, "-n_sample", "3")
    call(folder, *train, "-train_steps", "4", "-save_checkpoint_steps", "4", "-accum_count", "2",
        "-model_dtype", "fp32", "-learning_rate", "2e-3")  # fmt: skip
    tuned = "finetuned_llama7B/llama7B-vicuna-onmt_step_4"
    call(folder, ROOT / "tools/lora_weights.py", "--action", "merge", "--base_model", "llama7B-vicuna-onmt",
        "--lora_weights", f"{tuned}.pt", "--output", f"{tuned}.concat.pt")  # fmt: skip
    for quantization in ("int8_float16", "float32"):
        call(folder, "release_model", "--model", f"{tuned}.concat.pt", "--format", "ctranslate2",
            "--output", f"{tuned}.concat_{quantization}", "--quantization", quantization)  # fmt: skip
    for mode, model, decoding in (
        ("py", f"{tuned}.concat.pt", "beam: 1\nprecision: fp32"),
        ("ct2", f"{tuned}.concat_float32", "beam: 1"),
        ("int8", f"{tuned}.concat_int8_float16", "beam_size: 3\nn_best: 2"),
    ):
        (folder / f"translate_opts_{mode}.yaml").write_text(
            f"model: {model}\ntransforms: [sentencepiece]\nsrc_subword_model: llama/tokenizer.model\n"
            f"tgt_subword_model: llama/tokenizer.model\nmodel_task: lm\nmax_length: 12\nsrc: None\ngpu: 0\n{decoding}\n"
        )
    return folder


def test_the_sample_dump_shows_newline_tokens(recipe: Path) -> None:
    lines = (recipe / "finetuned_llama7B/samples/sample/alpaca.sample.src").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("▁") and "<0x0A> <0x0A>" in lines[0] and "newline" not in lines[0]


def test_the_vocabulary_is_the_tokenisers(recipe: Path) -> None:
    tokens = (recipe / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:3] == ["<unk>", "<s>", "</s>"] and "<0x0A>" in tokens


def test_training_saved_an_adapter_only(recipe: Path) -> None:
    adapter = Checkpoint.open(recipe / "finetuned_llama7B/llama7B-vicuna-onmt_step_4")
    assert adapter.is_adapter and len(adapter.names()) == 2 * 4 * 2  # layers, projections, A and B
    rows = (recipe / "finetuned_llama7B/llama7B-vicuna-onmt_metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows if "loss" in json.loads(row)][-1] == 4


def answers(folder: Path, config: str, mode: str) -> list[str]:
    call(folder, ROOT / "chatbot/simple_inference.py", "-input_file", "input_examples.txt",
        "-inference_config_file", f"translate_opts_{config}.yaml", "-inference_mode", mode,
        "-output_dir", f"outputs_{config}")  # fmt: skip
    (output,) = (folder / f"outputs_{config}").glob(f"outputs_*_{mode}.json")
    return json.loads(output.read_text(encoding="utf-8"))["pred_answers"]


def test_both_engines_give_the_same_greedy_answers(recipe: Path) -> None:
    torch_answers, ct2_answers = answers(recipe, "py", "py"), answers(recipe, "ct2", "ct2")
    assert torch_answers == ct2_answers
    assert len(torch_answers) == 3 and torch_answers[1] in ("", [""])


def test_the_int8_float16_release_runs_on_a_cpu(recipe: Path) -> None:
    assert len(answers(recipe, "int8", "ct2")) == 3
    tuned = "finetuned_llama7B/llama7B-vicuna-onmt_step_4.concat_int8_float16"
    report = json.loads((recipe / tuned / "release_report.json").read_text())
    assert report["quantization"] == "int8_float16" and report["figures"]["mean_kl"] < 0.1


def test_merging_into_another_base_is_refused(recipe: Path) -> None:
    text = call(recipe, ROOT / "tools/lora_weights.py", "--action", "merge",
               "--base_model", "finetuned_llama7B/llama7B-vicuna-onmt_step_4.concat.pt",
               "--lora_weights", "finetuned_llama7B/llama7B-vicuna-onmt_step_4", "--output", "wrong",
               code=4)  # fmt: skip
    assert "base" in text and not (recipe / "wrong").exists()


def test_an_unmerged_adapter_is_not_released(recipe: Path) -> None:
    text = call(recipe, "release_model", "-m", "finetuned_llama7B/llama7B-vicuna-onmt_step_4", "-o", "wrong", code=4)
    assert "merge" in text and not (recipe / "wrong").exists()


@pytest.mark.slow
def test_the_chat_page_opens(recipe: Path) -> None:
    pytest.importorskip("gradio")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, ROOT / "chatbot/chatbot.py", "-inference_config_file", "translate_opts_ct2.yaml",
         "-inference_mode", "ct2", "-max_context_length", "4096", "-server_port", str(port)],
        cwd=recipe, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 90
        page = ""
        while not page and time.monotonic() < deadline and server.poll() is None:
            try:
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read().decode()
            except OSError:
                time.sleep(0.5)
        assert "gradio" in page, server.stdout.read().decode() if server.poll() is not None and server.stdout else page
    finally:
        server.terminate()
        server.wait(20)
