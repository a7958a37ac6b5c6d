"""`onmt_llm_checkpoint`, `onmt_llm_convert` and `onmt_llm_lora`: results and refusals."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.cli import checkpoint as checkpoint_command
from onmt_llm.cli import convert as convert_command
from onmt_llm.cli import lora as lora_command
from onmt_llm.cli.run import run
from onmt_llm.errors import DataError

Make = Callable[..., Checkpoint]


def test_merge_with_the_recipes_spelling(
    tmp_path: Path, make_model: Make, make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_model("llama7B-vicuna-onmt")
    (tmp_path / "finetuned_llama7B").mkdir()
    make_adapter(base, "finetuned_llama7B/llama7B-vicuna-onmt_step_4000")
    monkeypatch.chdir(tmp_path)
    tuned = "finetuned_llama7B/llama7B-vicuna-onmt_step_4000"
    output = f"{tuned}.concat.pt"
    command = f"--action merge --base_model llama7B-vicuna-onmt --lora_weights {tuned}.pt --output {output}"
    assert lora_command.main(command.split()) == 0
    assert (tmp_path / output / "model.safetensors").is_file()
    assert (
        checkpoint_command.main(["extract_vocabulary", "-model", output, "-out_file", "vocab.txt", "-side", "src"]) == 0
    )
    assert len((tmp_path / "vocab.txt").read_text().splitlines()) == 20


def test_errors_are_one_line_with_an_exit_code(
    tmp_path: Path, make_model: Make, make_adapter: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = make_model(), make_adapter(make_model("twin"))
    arguments = ["-base_model", str(base.path), "-lora_weights", str(adapter.path), "-output", str(tmp_path / "out")]
    assert lora_command.main(arguments) == 0  # the twin has the same weights: the same base
    assert lora_command.main(arguments) == 4
    assert "exists already" in capsys.readouterr().err
    assert lora_command.main([*arguments, "--force"]) == 0
    assert convert_command.main(["--model-dir", str(tmp_path / "absent"), "--output", str(tmp_path / "x")]) == 4
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(tmp_path / "absent") in error
    assert convert_command.main(["-model_dir", str(tmp_path)]) == 2
    assert "'output' must be given" in capsys.readouterr().err
    assert convert_command.main(["-model_dri", "x"]) == 2
    assert "model_dir" in capsys.readouterr().err
    assert checkpoint_command.main(["inof"]) == 2


def test_info_and_verify(tmp_path: Path, make_model: Make, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_model()
    assert checkpoint_command.main(["info", "--model", str(base.path)]) == 0
    shown = capsys.readouterr().out
    assert base.fingerprint in shown and "hidden_size: 16" in shown
    assert checkpoint_command.main(["verify", "-model", str(base.path)]) == 0
    weights = base.path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 4
    weights.write_bytes(content)
    assert checkpoint_command.main(["verify", "-model", str(base.path)]) == 4
    assert "must be as it was written" in capsys.readouterr().err


def test_average_and_extract_embeddings(tmp_path: Path, make_model: Make, capsys: pytest.CaptureFixture[str]) -> None:
    models = [make_model(f"step_{i}", seed=i) for i in range(3)]
    paths = [str(model.path) for model in models]
    assert checkpoint_command.main(["average", "-m", *paths, "-o", str(tmp_path / "mean"), "-f"]) == 0
    mean = Checkpoint.open(tmp_path / "mean")
    name = "decoder.layers.1.self_attn.q_proj.weight"
    expected = torch.stack([model.tensor(name) for model in models]).mean(dim=0)
    assert torch.allclose(mean.tensor(name), expected, atol=1e-6)
    assert mean.config.source == "mean of step_0, step_1, step_2"
    assert checkpoint_command.main(["average", "-models", *paths, "-output", str(tmp_path / "mean")]) == 4
    other = make_model("other", model=models[0].config.model.model_copy(update={"decoder_layers": 1}))
    words = ["average", "-models", paths[0], str(other.path), "-output", str(tmp_path / "none")]
    assert checkpoint_command.main(words) == 4
    assert "must have the same architecture" in capsys.readouterr().err
    assert checkpoint_command.main(["average", "-output", "x"]) == 2

    file = tmp_path / "vectors.txt"
    assert checkpoint_command.main(["extract_embeddings", "-model", paths[0], "-out_file", str(file)]) == 0
    lines = [line.split(" ") for line in file.read_text().splitlines()]
    assert [line[0] for line in lines] == list(models[0].codec().vocab)
    vectors = torch.tensor([[float(value) for value in line[1:]] for line in lines])
    assert torch.allclose(vectors, models[0].tensor("decoder.embed_tokens.weight"), atol=1e-5)


def test_run_turns_errors_into_codes(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(argv: object) -> int:
        raise DataError("the line is broken", hint="mend it")

    def interrupt(argv: object) -> int:
        raise KeyboardInterrupt

    assert run(fail, []) == 3
    assert capsys.readouterr().err == "error: the line is broken\n  hint: mend it\n"
    assert run(interrupt, []) == 130


def test_commands_start_without_torch() -> None:
    code = (
        "import sys, onmt_llm.cli.convert as a, onmt_llm.cli.lora as b, onmt_llm.cli.checkpoint as c\n"
        "assert a.main(['-model_dir', '.']) == b.main([]) == c.main([]) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
