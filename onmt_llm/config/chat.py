"""Options of the chat page and of `simple_inference`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.section import Section

Mode = Literal["py", "ct2"]


class PageConfig(Section):
    """The model behind a page or a file of answers; OpenNMT-py's names."""

    inference_config_file: str | None = None
    """Translate YAML: model, template and how answers are searched for or sampled."""
    inference_mode: Mode = "py"
    """Kind of the model: `py` = a checkpoint, `ct2` = a CTranslate2 release."""


class ServerConfig(Section):
    """The page itself."""

    max_context_length: Annotated[int, Field(ge=2, le=10**7)] = 4096
    """Tokens that prompt and answer may have together; the oldest rounds are left out beyond it."""
    server_port: Annotated[int, Field(ge=1, le=65535)] = 6006
    """Port of the page."""
    server_name: str = "127.0.0.1"
    """Address of the page; any other than this machine's own lets others in."""


class ChatConfig(Section):
    """Talk to a model in the browser."""

    answering: PageConfig = PageConfig()
    server: ServerConfig = ServerConfig()


class FilesConfig(Section):
    """Prompts in, answers out."""

    input_file: str | None = None
    """Prompts, one a line, a line break inside a prompt written as ｟newline｠."""
    output_directory: str | None = None
    """Folder of the JSON file; made if it does not exist."""


class SimpleInferenceConfig(Section):
    """Answer a file of prompts with one model and write JSON."""

    answering: PageConfig = PageConfig()
    files: FilesConfig = FilesConfig()
