"""Files for deployment, which nothing here can run: what they name must exist, and vLLM must find what it reads."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import tokenize
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml

from onmt_llm.checkpoint.formats.huggingface.write import export_hf
from onmt_llm.cli.jobs import JOBS, load_job
from onmt_llm.commands import COMMANDS
from onmt_llm.config.loading import flags
from onmt_llm.config.section import options_of
from tests.tiny import write_chat_model

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "serve"


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each instruction of the Dockerfile."""
    text = re.sub(r"\\\n\s*", "", (RECIPE / "Dockerfile").read_text(encoding="utf-8"))
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def arguments(name: str) -> list[str]:
    return [rest for each, rest in instructions() if each == name]


def check_flags(command: str, words: list[str]) -> None:
    job = JOBS[command]
    table = options_of(job.section, job.extra())
    assert not flags.parse(words, table, flags.CommandLine(command, {}, job.short)).problems


def extras() -> dict[str, set[str]]:
    """The packages of each extra, without versions."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    found = setup.call_args.kwargs["extras_require"]
    return {name: {re.split("[>=; ]", package)[0] for package in packages} for name, packages in found.items()}


def test_the_page_on_installing_lists_all_extras() -> None:
    page = (ROOT / "docs/how-to/install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.+?) \| (.+?) \|", page, flags=re.MULTILINE)
    listed = {tuple(re.findall("`(.+?)`", names)): set(packages.split(", ")) for names, packages in rows}
    found = extras()
    assert {name for names in listed for name in names} == set(found)
    for names, packages in listed.items():
        assert names in (("all",), ("dev",)) or packages == set().union(*(found[name] for name in names))
    left_out = set(found) - {"dev", "all"} - {name for name in found if found[name] <= found["all"]}
    (all_of_them,) = [packages for names, packages in rows if names == "`all`"]
    assert left_out == set(re.findall("`(.+?)`", all_of_them))


def test_the_image_copies_what_exists_and_installs_what_exists() -> None:
    copied = [word for rest in arguments("COPY") for word in rest.split()[:-1]]
    assert [path for path in copied if not (ROOT / path).exists()] == []
    needed = {"setup.py", "onmt_llm", "recipes", "README.md", "LICENSE", "constraints.txt"}
    assert needed <= set(copied)
    (versions,) = re.findall(r"torch==([\d.]+)", " ".join(arguments("RUN")))
    assert f"torch=={versions}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert set(re.findall(r'"\.\[([\w,]+)\]"', " ".join(arguments("RUN")))) <= set(extras())
    assert re.fullmatch(r"python:3\.(1[0-3])-slim", arguments("FROM")[0])


def test_the_image_runs_our_command_as_an_ordinary_user() -> None:
    names = [name for name, _ in instructions()]
    assert arguments("USER") == ["onmt"] and names.index("USER") > max(
        place for place, name in enumerate(names) if name in ("RUN", "COPY")
    )
    (command,) = json.loads(arguments("ENTRYPOINT")[0])
    assert command in COMMANDS
    check_flags(command, json.loads(arguments("CMD")[0]))
    (check,) = arguments("HEALTHCHECK")
    code = json.loads(check[check.index("[") :])[2]
    compile(code, "HEALTHCHECK", "exec")
    assert f":{arguments('EXPOSE')[0]}/ready" in code


def test_compose() -> None:
    content = yaml.safe_load((RECIPE / "compose.yaml").read_text(encoding="utf-8"))
    (service,) = content["services"].values()
    context = (RECIPE / service["build"]["context"]).resolve()
    assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    check_flags("onmt_llm_serve", service["command"])
    port = service["command"][service["command"].index("-port") + 1]
    assert service["ports"] == [f"127.0.0.1:{port}:{port}"]
    targets = [volume.split(":")[1] for volume in service["volumes"]]
    assert all(volume.endswith(":ro") for volume in service["volumes"])
    assert service["command"][service["command"].index("-config") + 1] in targets
    models = load_job("onmt_llm_serve", ["-config", str(RECIPE / "serve.yaml")]).job.serving.models
    assert {Path(service["working_dir"], model.model).parts[:3] for model in models.values()} == {
        ("/", "srv", "models")
    }
    drain = load_job("onmt_llm_serve", []).job.limits.drain_seconds
    assert int(service["stop_grace_period"].removesuffix("s")) > drain
    assert {f"/run/secrets/{name}" for name in content["secrets"]} <= set(service["command"])


def test_the_recipe_for_ray_is_python_and_its_arguments_are_documented() -> None:
    file = RECIPE / "ray_serve.py"
    with tokenize.open(file) as source:
        text = source.read()
    compile(text, str(file), "exec")
    page = (ROOT / "docs/how-to/serve-with-ray.md").read_text(encoding="utf-8")
    read = set(re.findall(r'arguments(?:\.get\(|\[)"(\w+)"', text))
    assert [name for name in read if f"{name}=" not in page and f"`{name}`" not in page] == []
    (line,) = re.findall(r"^serve run (.*)$", page, flags=re.MULTILINE)
    target, *given = shlex.split(line)
    assert target == "ray_serve:build" and {word.split("=")[0] for word in given} <= read
    assert (RECIPE / dict(word.split("=") for word in given)["config"]).is_file()


def test_the_export_has_what_vllm_reads(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_hf(write_chat_model(tmp_path / "model"), tmp_path / "hf")

    def content(name: str) -> dict[str, Any]:
        return dict(json.loads((tmp_path / "hf" / name).read_text(encoding="utf-8")))

    assert content("config.json")["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "hf/model.safetensors").is_file()
    assert content("generation_config.json")["eos_token_id"] is not None
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert "Hello" in prompt


def test_the_page_about_vllm_counts_our_architectures() -> None:
    """34 + 1 + 1 of them; a new one must be looked up in vLLM's registry before the page counts it."""
    folder = ROOT / "onmt_llm/checkpoint/formats/huggingface/families"
    text = "\n".join(file.read_text(encoding="utf-8") for file in folder.rglob("*.py"))
    names = set(re.findall(r'"(\w+(?:ForCausalLM|LMHeadModel))"', text))
    assert {"SmolLM3ForCausalLM", "HeliumForCausalLM"} <= names and len(names) == 36


def test_the_job_for_kubernetes_starts_our_command_on_all_processes() -> None:
    (block,) = re.findall(r"```yaml\n(apiVersion.*?)```", (ROOT / "docs/how-to/clusters.md").read_text("utf-8"), re.S)
    spec = yaml.safe_load(block)["spec"]
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    assert container["command"] == ["torchrun", "-m", "onmt_llm.cli.train"]
    check_flags("onmt_llm_train", container["args"])
    size = int(container["args"][container["args"].index("-world_size") + 1])
    assert size == worker["replicas"] * int(spec["nprocPerNode"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
