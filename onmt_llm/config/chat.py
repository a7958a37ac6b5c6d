"""Options of `onmt_llm_chat` and `simple_inference`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from onmt_llm.config.section import Section

Mode = Literal["py", "ct2"]


class ChatModelConfig(Section):
    """The model that answers."""

    model: str | None = None
    """The checkpoint or CTranslate2 release, instead of the model that `inference_config_file` names."""
    inference_config_file: str | None = None
    """YAML file for `onmt_llm_translate`: model, template and decoding options."""
    inference_mode: Mode | None = None
    """What the model must be: `py` = a checkpoint, `ct2` = a CTranslate2 release; by default it may be either."""


class ServerConfig(Section):
    """The chat page."""

    max_context_length: Annotated[int, Field(ge=2, le=10**7)] = 4096
    """Maximum length of prompt plus answer in tokens; beyond it, the oldest rounds of the conversation are dropped."""
    server_port: Annotated[int, Field(ge=1, le=65535)] = 6006
    """Port of the page."""
    server_name: str = "127.0.0.1"
    """Address to listen on; the default serves this machine only."""
    users_file: str | None = None
    """File with a line `name:password` for each visitor who may use the page; without it the lines may be in the
    environment variable `ONMT_LLM_CHAT_USERS`, and without either everyone may use the page."""
    max_queue: Annotated[int, Field(ge=1, le=10**6)] = 64
    """Number of visitors who may wait for an answer; a further one is refused with a sentence."""
    system_prompt: str = ""
    """System prompt of new conversations; visitors may change theirs."""
    compare_model: str | None = None
    """Another checkpoint or CTranslate2 release, whose answers are shown beside those of the first."""


class ChatConfig(Section):
    """Chat with a model in the browser."""

    answering: ChatModelConfig = ChatModelConfig()
    server: ServerConfig = ServerConfig()


class FilesConfig(Section):
    """Input and output files."""

    input_file: str | None = None
    """File of prompts, one per line; a line break within a prompt is written as ｟newline｠."""
    output_directory: str | None = None
    """Folder for the JSON file; created if needed."""


class SimpleInferenceConfig(Section):
    """Answer a file of prompts with one model and write JSON."""

    answering: ChatModelConfig = ChatModelConfig()
    files: FilesConfig = FilesConfig()
