"""Small files that declare or expand to something huge are refused at once, with one sentence."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from onmt_llm.errors import CheckpointError, DataError
from onmt_llm.text.tokenizers.huggingface import HfTokenizer

pytest.importorskip("gguf")
SCRIPT = Path(__file__).parents[3] / "data" / "bombs.py"
BOMBS: list[str] = list(runpy.run_path(str(SCRIPT))["BOMBS"])


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("bombs")
    done = subprocess.run([sys.executable, SCRIPT, folder], capture_output=True, timeout=300, check=True)
    return json.loads(done.stdout)  # type: ignore[no-any-return]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of processes, and /proc")
@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_at_once(name: str, measured: dict[str, dict[str, Any]]) -> None:
    found = measured[name]
    assert "problem" not in found
    assert found["s"] < 2 and found["mib"] < 100
    code, message = found["result"]
    if name == "hf as it should be":
        assert (code, message) == (0, "")
        return
    assert code == (2 if name.startswith("lora") else 3 if "tokenizer.json" in message or "ids" in name else 4)
    assert message.endswith(".") and len(message.splitlines()) == 1 and len(message) < 500


@pytest.mark.parametrize(
    ("normaliser", "fits"),
    [
        (None, True),
        ({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, True),
        ({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}, True),
        ({"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Prepend", "prepend": "▁"}]}, True),
        ({"type": "Replace", "pattern": {"String": "ab"}, "content": "x" * 100}, True),
        ({"type": "Replace", "pattern": {"String": "a"}, "content": "x" * 100}, False),
        ({"type": "Replace", "pattern": {"String": ""}, "content": "x" * 100}, False),
    ],
)
def test_what_normalisers_may_do(normaliser: Any, fits: bool, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    model = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}
    content = {"model": model, "normalizer": normaliser, "decoder": {"type": "Fuse"}}
    file.write_text(json.dumps(content), encoding="utf-8")
    if fits:
        HfTokenizer(file)
    else:
        with pytest.raises(DataError, match="may turn one character into at most 64"):
            HfTokenizer(file)


def test_a_sentence_ends_once() -> None:
    assert CheckpointError("It says: no.").message == "It says: no."
    assert CheckpointError("It says: no..").message == "It says: no."
    assert CheckpointError("It is bad (it says: no.).").message == "It is bad (it says: no)."
    assert CheckpointError("And so on ...").message == "And so on ..."
