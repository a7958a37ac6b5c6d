"""The documents: commands parse, links and paths lead somewhere, YAML files load, layers are those that are checked."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.config.loading import flags
from onmt_llm.config.section import options_of

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/**/*.md")])
PACKAGE = ROOT / "onmt_llm"
TOP_FOLDERS = ("onmt_llm", "tools", "chatbot", "recipes", "docs", "tests")
SWITCHES = {"dry_run": ""}
WITH_ACTIONS = ("onmt_llm_checkpoint", "onmt_llm_data", "onmt_llm_eval", "onmt_llm_hub", "onmt_llm_launch")
SCRIPTS = {
    "chatbot.py": "onmt_llm_chat",
    "simple_inference.py": "simple_inference",
    "convert_llama.py": "onmt_llm_convert",
    "convert_falcon.py": "onmt_llm_convert",
    "lora_weights.py": "onmt_llm_lora",
    "onmt_llm_generate": "onmt_llm_translate",
}


def commands(document: Path) -> Iterator[list[str]]:
    """Words of every command of ours in the shell blocks of a document."""
    for block in re.findall(r"```(?:shell|bash|sh)\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            while words and (words[0] in ("python", "python3", "nohup") or "=" in words[0]):
                words.pop(0)
            if words[:2] == ["onmt_llm_eval", "run"]:
                words[:2] = ["onmt_llm_eval_run"]
            if words:
                name = Path(words[0]).name
                yield [SCRIPTS.get(name, name), *words[1:]]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_line_parses(document: Path) -> None:
    for name, *words in commands(document):
        if name in JOBS:
            job = JOBS[name]
            cut = next((i for i, word in enumerate(words) if word in (">", "|", "&", "2>&1")), len(words))
            options = words[name in WITH_ACTIONS : cut]
            options = ["-runs", *options] if name == "onmt_llm_plot" else options
            table = options_of(job.section, job.extra())
            parsed = flags.parse(options, table, flags.CommandLine(name, SWITCHES, job.short))
            assert not parsed.problems


def anchors(document: Path) -> set[str]:
    """The names that GitHub and the site give to the headings of a document."""
    prose = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.S | re.M)
    headings = re.findall(r"^#+ +(.+)$", prose, flags=re.M)
    words = [re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading).strip().lower() for heading in headings]
    return {re.sub(r"[^\w -]", "", word).replace(" ", "-") for word in words}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        page = document.parent / target if target else document
        assert page.exists(), target
        assert not anchor or anchor in anchors(page), f"{target}#{anchor}"


def linked(document: Path) -> set[Path]:
    """Documents that a document links to."""
    targets = re.findall(r"\]\(([^)#:]+\.md)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    return {(document.parent / target).resolve() for target in targets}


def test_the_index_leads_to_every_page_in_two_clicks() -> None:
    first = linked(ROOT / "docs/README.md")
    reached = first | {page for document in first for page in linked(document)}
    assert sorted(set(ROOT.glob("docs/**/*.md")) - reached - {ROOT / "docs/README.md"}) == []


def paths(document: Path) -> Iterator[Path]:
    """Files and folders of the repository in the code spans of a document: `data/corpus.py`, `onmt_llm/text/`."""
    prose = re.sub(r"```.*?```", "", document.read_text(encoding="utf-8"), flags=re.S)
    for span in re.findall(r"`([\w.-]+/[\w./-]*)`", prose):
        folder = span.split("/")[0]
        if folder in TOP_FOLDERS:
            yield ROOT / span
        elif (PACKAGE / folder).is_dir():
            yield PACKAGE / span


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_in_prose_exist(document: Path) -> None:
    assert [str(path) for path in paths(document) if not path.exists()] == []


def layers() -> list[set[str]]:
    """The packages and modules of each import layer, from top to bottom, as import-linter checks them."""
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (block,) = re.findall(r'containers = \["onmt_llm"\]\nlayers = \[\n(.*?)\n\]', settings, flags=re.S)
    return [set(layer.split(" | ")) for layer in re.findall(r'"(.*?)"', block)]


def test_the_tree_of_the_readme_lists_all_packages_from_top_to_bottom() -> None:
    tree = re.findall(r"^  (\w+)/ ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert set(tree) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    height = {name: number for number, layer in enumerate(layers()) for name in layer}
    assert tree == sorted(tree, key=lambda name: height[name])


def test_contributing_names_the_layers_that_are_checked() -> None:
    (block,) = re.findall(
        r"^    api  >.*?\n\n", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.S | re.M
    )
    assert [set(re.findall(r"\w+", layer)) for layer in block.split(">")] == layers()


YAMLS = sorted(file for file in ROOT.glob("recipes/**/*.yaml") if file.name != "compose.yaml")


@pytest.mark.parametrize("file", YAMLS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_of_the_recipes_loads(file: Path) -> None:
    commands = {"translate": "onmt_llm_translate", "serve": "onmt_llm_serve"}
    command = next((command for name, command in commands.items() if file.name.startswith(name)), "onmt_llm_train")
    load_job(command, ["-config", str(file)])


def yaml_blocks(document: Path) -> list[str]:
    """YAML examples of a document, without those that need a plug-in beside them, and those for Kubernetes."""
    blocks = re.findall(r"```yaml\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.S)
    return [block for block in blocks if "plugins:" not in block and "apiVersion:" not in block]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_yaml_example_loads(document: Path, tmp_path: Path) -> None:
    for block in yaml_blocks(document):
        (tmp_path / "example.yaml").write_text(block, encoding="utf-8")
        load_job("onmt_llm_train", ["-config", str(tmp_path / "example.yaml")])


SCRIPTS_OF_OURS = sorted(
    path for folder in ("chatbot", "docs", "recipes", "tools") for path in (ROOT / folder).rglob("*.py")
)


def check_imports(source: str) -> None:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onmt_llm"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                assert hasattr(module, name.name) or importlib.util.find_spec(f"{node.module}.{name.name}"), name.name


@pytest.mark.parametrize("script", SCRIPTS_OF_OURS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_import_what_exists(script: Path) -> None:
    check_imports(script.read_text(encoding="utf-8"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_import_what_exists(document: Path) -> None:
    for block in re.findall(r"^```python.*?\n(.*?)^```", document.read_text(encoding="utf-8"), flags=re.M | re.S):
        check_imports(block)


def test_the_option_reference_is_up_to_date() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_seeds_spellings_parse() -> None:
    convert = "--model_dir llama/7B/ --tokenizer_model llama/tokenizer.model --output llama7B-vicuna-onmt"
    for name, line in {
        "onmt_llm_convert": convert,
        "onmt_llm_lora": "--action merge --base_model a --lora_weights b --output c",
        "release_model": "--model a --output b --format ctranslate2 --quantization int8_float16",
        "onmt_llm_chat": "-inference_config_file f.yaml -inference_mode ct2 -max_context_length 4096 -server_port 5000",
        "simple_inference": "-input_file i -inference_config_file f -inference_mode py -output_dir outputs",
    }.items():
        load_job(name, line.split())
