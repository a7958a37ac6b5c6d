"""Write the option reference and the JSON schema from the options' own definitions.

`python docs/generate.py` writes them; `--check` only lists files that are out of date, and then exits with 1.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from onmt_llm.checkpoint.export_guard import obstacles
from onmt_llm.checkpoint.formats.gguf import architectures as gguf
from onmt_llm.checkpoint.formats.gguf.write import export_obstacles
from onmt_llm.checkpoint.formats.huggingface.families import FAMILIES
from onmt_llm.checkpoint.formats.huggingface.families.base import Family
from onmt_llm.checkpoint.formats.opennmt import write as opennmt
from onmt_llm.cli.jobs import JOBS
from onmt_llm.commands import COMMANDS
from onmt_llm.config.compat.opennmt_table import option_table, read_options
from onmt_llm.config.loading.render import json_schema, option_tables
from onmt_llm.config.model import ModelConfig
from onmt_llm.config.section import options_of
from onmt_llm.releasing import ct2_spec

REFERENCE = Path(__file__).parent / "reference"
SIZES = {
    **{"num_hidden_layers": 8, "n_layer": 8, "n_layers": 8, "num_attention_heads": 4, "n_head": 4, "n_heads": 4},
    **{"num_layers": 2, "num_heads": 4, "d_kv": 16, "d_ff": 256},
    **{"hidden_size": 64, "n_embd": 64, "d_model": 64, "intermediate_size": 256, "ffn_dim": 256, "vocab_size": 300},
    **{"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 256},
    **{"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 256},
}
"""Values of the keys that a `config.json` must have, in one family or another."""
OPENNMT_OPTIONS = Path(__file__).parents[1] / "tests/data/opennmt_options.txt"


def pages() -> dict[Path, str]:
    """Every generated file and its content."""
    result: dict[Path, str] = {}
    for command, job in JOBS.items():
        about = (
            f"# Options of `{command}`\n\n{_begin(command)}Generated from the schema by `make docs`. Each option is a"
            " YAML key and a flag (`-x v`, `--x v`, `--x=v`); OpenNMT-py's names work too. `-help SECTION` shows a"
            " section, `-help OPTION` one option.\n\n"
        )
        result[REFERENCE / f"{command}.md"] = about + option_tables(job.section, job.extra()) + "\n"
        schema = json.dumps(json_schema(job.section, job.extra()), indent=1, ensure_ascii=False, sort_keys=True)
        result[REFERENCE / f"{command}.schema.json"] = schema + "\n"
    tables = {command: options_of(job.section, job.extra()) for command, job in JOBS.items()}
    options = read_options(OPENNMT_OPTIONS.read_text(encoding="utf-8"))
    result[REFERENCE / "opennmt_options.md"] = option_table(options, tables)
    result[REFERENCE / "families.md"] = _families()
    return result


_SENTENCEPIECE = "`tokenizer.model`"
_MERGES = "`vocab.json` with `merges.txt`"
_FAIRSEQ = "`sentencepiece.bpe.model`"
TOKENIZERS = {
    **dict.fromkeys(
        ("llama", "mistral", "gemma", "gemma2", "gemma3_text", "phi3", "ernie4_5", "helium"), _SENTENCEPIECE
    ),
    **dict.fromkeys(("gpt2", "gptj", "opt", "phi", "bart", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"), _MERGES),
    **dict.fromkeys(("t5", "mt5", "umt5"), "`spiece.model`"),
    "llama": f"{_SENTENCEPIECE}, tiktoken",
    "mistral": f"{_SENTENCEPIECE}, `tekken.json`",
    "m2m_100": f"{_FAIRSEQ}, also with `vocab.json`",
    "mbart": _FAIRSEQ,
    "marian": "`source.spm`, `target.spm`, `vocab.json`",
}
"""Tokeniser files that models of a family may have besides tokenizer.json."""


def _families() -> str:
    """The families of Hugging Face models and what a model with each family's defaults converts to."""
    head = (
        "# Families of Hugging Face models\n\nGenerated from the table of families by `make docs`. Each row is a"
        " `model_type` of `config.json`; a model of it becomes a checkpoint like any other.\n"
        "`tests/parity/test_families.py`, `test_families_seq2seq.py` and `test_moe.py` compare each with transformers:"
        " the logits (to 1e-5 in float32), also with a cache and past a sliding\nwindow; the loss and the gradients"
        " (train); the folder that `-to hf` writes, tensor by tensor (out); and a CTranslate2 release."
        " `test_gguf_families.py` does so with GGUF files (in), and\n`test_gguf_out.py` compares those that are"
        " written, bit by bit (out).\nTokenisers are those that a model may have besides"
        " `tokenizer.json`; their ids are compared with the libraries that they are made for.\n\n"
        "| `model_type` | models | in, out, train | tokenisers | GGUF | CTranslate2 | `-to opennmt` |\n"
        "|---|---|---|---|---|---|---|\n"
    )
    rows = []
    for family in FAMILIES:
        model = family.to_model({key: value for key, value in SIZES.items() if key in family.keys})
        found = [_brief(obstacles(model, table)) for table in (ct2_spec.EXPRESSIBLE, opennmt.EXPRESSIBLE)]
        cells = [
            f"`{family.model_type}`",
            family.models,
            "yes",
            TOKENIZERS.get(family.model_type, ""),
            _in_gguf(family, model),
            *(f"no: {one}" if one else "yes" for one in found),
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    foot = (
        "\nWhat a model has beyond its family's defaults counts too: a variant that cannot be computed or written is"
        " refused by name (a tower for images, a key of\n`config.json` that is not known).\n\n"
        "To add one: [add a model family](../tutorials/add-a-model-family.md).\n"
    )
    return head + "".join(rows) + foot


def _in_gguf(family: Family, model: ModelConfig) -> str:
    """Whether GGUF files of a family are read and written."""
    found = [
        export_obstacles(architecture, model, f"{family.origin}, a model")
        for architecture, names in gguf.MODEL_TYPES.items()
        if family.model_type in names
    ]
    if not found:
        return "no"
    reason = _brief(min(found, key=len))
    return f"in; out: no: {reason}" if reason else "in, out"


def _brief(obstacles: Iterable[str]) -> str:
    """Why a model cannot be written, without the values of its single layers."""
    return re.sub(r" is \[[^]]*\]", " is set", ", ".join(obstacles))


def _begin(command: str) -> str:
    """What a command does, and examples of its use."""
    if command not in COMMANDS:
        return ""
    entry = COMMANDS[command]
    lines = [f"{command} {line}  # {what}" for line, what in entry.examples]
    return "\n".join([entry.phrase, "", "```shell", *lines, "```", "", ""])


def main() -> int:
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    if "--check" in sys.argv:
        for path in stale:
            print(f"{path.relative_to(Path.cwd())} is out of date: run `make docs`")
        return 1 if stale else 0
    REFERENCE.mkdir(exist_ok=True)
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    print(f"{len(stale)} of {len(pages())} pages written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
