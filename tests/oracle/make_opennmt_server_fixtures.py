"""Record what OpenNMT-py 3.5.1's REST server answers. Run by an interpreter that has OpenNMT-py, flask and waitress.

    PYTHON_OF_OPENNMT make_opennmt_server_fixtures.py MODEL.pt RELEASE OUTPUT.json

MODEL.pt is tests/data/opennmt/reverse.pt, RELEASE a CTranslate2 release of it (float32): tests/data/opennmt_server.json
was written so. It has the `available_models/conf.json` of the server, and its answers to requests in this order.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import onmt.bin.server as server

TOKENIZER = {"type": "pyonmttok", "mode": "space", "params": {"joiner_annotate": True}}
SEARCH = {"gpu": -1, "beam_size": 5, "max_length": 20, "max_length_ratio": 0}
CONF: dict[str, Any] = {
    "models_root": "./available_models",
    "models": [
        {"id": 100, "model": "model.pt", "load": True, "opt": {**SEARCH}},
        {"model": "model.pt", "timeout": 600, "on_timeout": "unload", "opt": {**SEARCH, "n_best": 3}},
        {"id": 7, "models": ["model.pt"], "tokenizer": TOKENIZER, "opt": {**SEARCH, "beam_size": 1}},
        {
            "id": 8,
            "model": "model.pt",
            "ct2_model": "release",
            "tokenizer": TOKENIZER,
            "ct2_translate_batch_args": {},
            "opt": {**SEARCH, "n_best": 2, "report_align": True},
        },
    ],
}
REQUESTS: list[tuple[str, str, Any]] = [
    ("GET", "/translator/health", None),
    ("GET", "/translator/models", None),
    ("POST", "/translator/translate", [{"id": 100, "src": "1 2 3"}]),
    ("POST", "/translator/translate", [{"id": 100, "src": "4 5"}, {"id": 100, "src": "9 8 7 6 5"}]),
    ("POST", "/translator/translate", [{"id": 0, "src": "1 2 3 4"}, {"id": 0, "src": "5 6"}, {"src": "7 0"}]),
    ("POST", "/translator/translate", [{"src": "3 1"}]),
    ("POST", "/translator/translate", [{"id": 7, "src": "2 7 1 8"}]),
    ("POST", "/translator/translate", [{"id": 8, "src": "2 7 1 8"}, {"id": 8, "src": "3 5"}]),
    ("POST", "/translator/translate", [{"id": 100, "src": "  1 2\t"}]),
    ("POST", "/translator/translate", [{"id": 0, "src": "1 2"}, {"id": 0, "src": ""}, {"id": 0, "src": " "}]),
    ("POST", "/translator/translate", [{"id": 100, "src": "1 unseen 3"}]),
    ("POST", "/translator/translate", [{"id": 100, "src": "1 2", "ref": "b a"}]),
    ("POST", "/translator/translate", [{"id": 55, "src": "1"}]),
    ("POST", "/translator/translate", []),
    ("POST", "/translator/translate", {"src": "1"}),
    ("POST", "/translator/translate", [{"id": 100}]),
    ("POST", "/translator/translate", [{"id": 100, "src": 5}]),
    ("GET", "/translator/translate", None),
    ("GET", "/translator/models", None),
    ("GET", "/translator/unload_model/0", None),
    ("GET", "/translator/unload_model/0", None),
    ("GET", "/translator/unload_model/55", None),
    ("GET", "/translator/unload_model/x", None),
    ("GET", "/translator/to_cpu/100", None),
    ("GET", "/translator/to_gpu/100", None),
    ("GET", "/translator/to_cpu/55", None),
    ("POST", "/translator/clone_model/100", {"timeout": 10, "opt": {"gpu": -1, "beam_size": 2}}),
    ("POST", "/translator/clone_model/55", {}),
    ("GET", "/translator/elsewhere", None),
]


def main(model: str, release: str, output: str) -> None:
    target = Path(output).resolve()
    sources = Path(model).resolve(), Path(release).resolve()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        root = Path("available_models")
        root.mkdir()
        shutil.copy(sources[0], root / "model.pt")
        shutil.copytree(sources[1], root / "release")
        (root / "conf.json").write_text(json.dumps(CONF))
        apps: list[Any] = []
        server.serve = lambda app, **options: apps.append(app)  # instead of listening on a port
        server.start(str(root / "conf.json"), url_root="/translator")
        client = apps[0].test_client()
        answers = [ask(client, *request) for request in REQUESTS]
    content = {"conf": CONF, "answers": answers}
    target.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def ask(client: Any, method: str, path: str, body: Any) -> dict[str, Any]:
    answer = client.open(path, method=method, json=body)
    found = answer.get_json(silent=True)
    return {"method": method, "path": path, "body": body, "status": answer.status_code, "answer": found}


if __name__ == "__main__":
    main(*sys.argv[1:])
