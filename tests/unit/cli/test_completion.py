"""`onmt_llm completion`: commands, actions, options, values and topics, in each shell that is installed."""

from __future__ import annotations

import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest

from onmt_llm.cli.completion import SHELLS, table
from onmt_llm.cli.main import main

COMPLETED = {
    "onmt_llm tr": ["train", "translate"],
    "onmt_llm help rel": ["release"],
    "onmt_llm completion ": ["bash", "fish", "zsh"],
    "onmt_llm_data ": ["export", "merge", "pack", "report", "sample", "verify"],
    "onmt_llm data rep": ["report"],
    "onmt_llm_train -lora_ra": ["-lora_rank", "-lora_rank_pattern"],
    "onmt_llm build-vocab --n_sam": ["--n_sample"],
    "onmt_llm train -dry": ["-dry_run"],
    "onmt_llm_train -seed 1 -decay_method no": ["noam", "noamwd", "none"],
    "onmt_llm train -transforms bart fi": ["filtertoolong", "filtertooshort", "fim"],
    "onmt_llm_generate -batch_type ": ["sents", "tokens"],
    "onmt_llm train -overwrite ": ["false", "true"],
    "release_model -quantization int8_b": ["int8_bfloat16"],
    "onmt_llm help train lora_dr": ["lora_dropout"],
    "onmt_llm_train -help batchi": ["batching"],
}
WITHOUT_WORDS = ["onmt_llm_train -config ", "onmt_llm plot ", "onmt_llm nothing ", "onmt_llm_train -train_steps 5 "]
"""Here a shell completes files."""

BASH = """
source {script}
while IFS= read -r line; do
  read -ra COMP_WORDS <<< "$line"
  [[ $line == *' ' ]] && COMP_WORDS+=('')
  COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
  _onmt_llm
  echo "${{COMPREPLY[*]}}"
done
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("completion")
    for shell, write in SHELLS.items():
        (folder / shell).write_text(write(table()), encoding="utf-8")
    return folder


def output(shell: str, *arguments: str, text: str = "") -> str:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, *arguments], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash(scripts: Path) -> None:
    lines = [*COMPLETED, *WITHOUT_WORDS]
    shown = output("bash", "-c", BASH.format(script=scripts / "bash"), text="".join(f"{line}\n" for line in lines))
    found = {line: sorted(words.split()) for line, words in zip(lines, shown.splitlines(), strict=True)}
    assert found == COMPLETED | {line: [] for line in WITHOUT_WORDS}


def test_bash_splits_at_the_equals_sign(scripts: Path) -> None:
    ask = f"source {scripts / 'bash'}; COMP_WORDS=(onmt_llm_train --optim = 'adag'); COMP_CWORD=3; _onmt_llm"
    assert output("bash", "-c", f"{ask}; echo $COMPREPLY") == "adagrad\n"


def test_fish(scripts: Path) -> None:
    ask = f"source {scripts / 'fish'}; while read -l line; echo (complete -C $line | string replace -r '\\t.*' ''); end"
    shown = output("fish", "--no-config", "-c", ask, text="".join(f"{line}\n" for line in COMPLETED))
    assert {k: sorted(v.split()) for k, v in zip(COMPLETED, shown.splitlines(), strict=True)} == COMPLETED


def test_zsh_reads_the_script(scripts: Path) -> None:
    ask = f"compdef() {{ echo $@[-1]; }}; source {scripts / 'zsh'}; _onmt_llm_words 'data'; echo $reply"
    assert output("zsh", "-f", "-c", ask) == "onmt_llm_chat\nreport sample export pack merge verify\n"


def test_the_shell_must_be_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "csh"]) == main(["completion"]) == 2
    assert "bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["data", "checkpoint", "eval"])
def test_actions_are_completed(command: str) -> None:
    assert [*table()[command]] == [*import_module(f"onmt_llm.cli.{command}").ACTIONS]
