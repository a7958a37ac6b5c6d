"""The core of every recipe, quickly: the commands of its section "On a CPU" in this process, with few updates.

`test_recipes.py` runs all of them as they are written, and looks at the figures.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import fake_hub
import pytest
from pages import ROOT, blocks_of, command_lines

from commands import call
from onmt_llm.checkpoint.store import Checkpoint
from onmt_llm.commands import COMMANDS

for module in ("transformers", "huggingface_hub", "pyarrow", "sentencepiece"):
    pytest.importorskip(module)

HEADING = "## On a CPU"
LEFT_OUT = {"onmt_llm_plot", "onmt_llm_translate", "release_model"}
"""Commands that take seconds, and depend on nothing that is a recipe's own."""
SHORTER = {"make_toy_nllb.py": ["--steps", "1"], "tiny_pack.yaml": ["-num_threads", "1"]}
"""More arguments of commands, by the file that they name."""
STEP = re.compile(r"(_step_|\b(?:train|valid|save_checkpoint)_steps:? )(\d+)")
RECIPES = [path.parent.name for path in sorted(ROOT.glob("recipes/*/README.md")) if HEADING in path.read_text("utf-8")]


def section_of(recipe: str) -> str:
    page = (ROOT / "recipes" / recipe / "README.md").read_text(encoding="utf-8")
    return page.partition(HEADING)[2].partition("\n## ")[0]


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_commands_of_a_recipe_fit_together(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    section = section_of(recipe)
    saved = sorted({int(step) for step in re.findall(r"_step_(\d+)", section)})
    steps = {str(step): str(number) for number, step in enumerate(saved, 1)}

    def shortened(text: str) -> str:
        """`text` with the steps of checkpoints counted 1, 2 ...; any other step is the first."""
        text = text.replace("max_tokens: 40960", "max_tokens: 1024")
        return STEP.sub(lambda match: match[1] + steps.get(match[2], "1"), text)

    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "tools").symlink_to(ROOT / "tools")
    for file in (tmp_path / "recipes" / recipe).glob("tiny*.yaml"):
        file.write_text(shortened(file.read_text(encoding="utf-8")), encoding="utf-8")
    with fake_hub.serving() as hub:
        fake_hub.use(hub, monkeypatch, tmp_path)
        for block in blocks_of(shortened(section)):
            if block.title:
                (tmp_path / block.title).write_text(block.text, encoding="utf-8")
            for line in command_lines(block) if block.language == "shell" else ():
                follow(tmp_path, shlex.split(line, comments=True))
    written = [path.parent for path in tmp_path.rglob("train_state")]
    assert written and all(Checkpoint.open(path).fingerprint for path in written)


def follow(folder: Path, words: list[str]) -> None:
    """Run a script, or one of our commands that make the artefacts."""
    if words[0] == "python":
        words = words[1:]
    elif words[0] not in COMMANDS or words[0] in LEFT_OUT:
        return
    more = [word for name, added in SHORTER.items() if any(each.endswith(name) for each in words) for word in added]
    found = [sorted(map(str, folder.glob(word))) if "*" in word else [word] for word in words]
    printed = call(folder, *(word for each in found for word in each), *more)
    assert "never trains a token that ends an answer" not in printed
