"""`onmt_llm_chat` (also `python chatbot/chatbot.py`): talk to a model in the browser."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.checks import inference_problems
from onmt_llm.cli.jobs import load_job
from onmt_llm.cli.outputs import Paths
from onmt_llm.cli.run import log_notes, run_job
from onmt_llm.cli.translate import open_from
from onmt_llm.config.chat import ChatConfig, Mode
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import ConfigError


def main(argv: Sequence[str] | None = None) -> int:
    return run_job("onmt_llm_chat", _chat, argv, paths=lambda loaded: Paths())


def _chat(loaded: Loaded[Any]) -> int:
    config: ChatConfig = loaded.job
    inference = load_inference_config(config.answering.inference_config_file, config.answering.inference_mode)
    # a page that cannot be served should say so before minutes are spent on loading a model
    from onmt_llm.chat.app import build_app, check_server, launch
    from onmt_llm.generate.session import ChatSession

    server = config.server
    check_server(server.server_name, server.server_port)
    session = ChatSession(
        open_from(inference),
        inference.job.generation,
        max_context_length=server.max_context_length,
        template=inference.job.inference.template,
    )
    app = build_app(session, **_headings(inference.job.inference.model[0], config))
    launch(app, server_name=server.server_name, server_port=server.server_port)
    return 0


def load_inference_config(path: str | None, mode: Mode) -> Loaded[Any]:
    """Read a translate YAML (`translate_opts_py.yaml`, `translate_opts_ct2.yaml`) and hold its model against `mode`.

    Raises:
        ConfigError: The file is missing or wrong, names no model, or names a model of the other kind.
        CheckpointError: The model is an incomplete release.
    """
    if not path:
        raise ConfigError(
            "'inference_config_file' must be given, but is not.", hint="-inference_config_file translate_opts_py.yaml"
        )
    loaded = load_job("onmt_llm_translate", ["-config", path], prog="inference_config_file", checks=inference_problems)
    log_notes(loaded)
    models = loaded.job.inference.model
    if not models:
        raise ConfigError(f"'model' must name a checkpoint or a release, but {path} does not set it.")
    model = models[0]
    from onmt_llm.generate.open import find_release

    found: Mode = "ct2" if find_release(model) else "py"
    if found != mode:
        kinds = {"py": "a checkpoint", "ct2": "a CTranslate2 release"}
        raise ConfigError(
            f"With inference_mode {mode} the model must be {kinds[mode]}, "
            f"but '{model}'{loaded.origin('model')} is not one.",
            hint=f"-inference_mode {found}, or another model",
        )
    return loaded


def _headings(model: str, config: ChatConfig) -> dict[str, str]:
    engine = {"py": "PyTorch", "ct2": "CTranslate2"}[config.answering.inference_mode]
    return {
        "title": f"Chat with {Path(model).name}",
        "subtitle": f"Answered by {engine}, from at most {config.server.max_context_length:,} tokens of conversation.",
    }


if __name__ == "__main__":
    raise SystemExit(main())
