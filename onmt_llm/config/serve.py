"""Options of `onmt_llm_serve`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from onmt_llm.config.checkpoint import TokenizerKind
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.integrity import IntegrityConfig
from onmt_llm.config.numbers import Count, PositiveOrZero
from onmt_llm.config.section import Section
from onmt_llm.config.translate import EngineConfig


class ServedModelConfig(Section):
    """A model that the server offers."""

    model: Annotated[str, Field(min_length=1)]
    """Checkpoint directory or CTranslate2 release; the engine follows from its files."""
    template: str = "auto"
    """Chat template; `auto` = the checkpoint's, or alpaca where it has none."""
    src_lang: str = ""
    """Language of the inputs of a multilingual model, unless a request names another."""
    tgt_lang: str = ""
    """Language to translate into, likewise."""
    max_context_length: Annotated[int, Field(ge=2, le=10**7)] | None = None
    """Maximum length of prompt plus answer in tokens; null = what the model was trained for."""
    drop_old_rounds: bool = False
    """Answer a chat that is too long without its oldest rounds, as the chat page does, instead of refusing it."""
    load_at_start: bool = True
    """Load the model when the server starts; otherwise when it is first asked for."""
    idle_unload_seconds: PositiveOrZero | None = None
    """Unload the model after this many seconds without a request; null = as for all models."""
    expected_tokenizer: TokenizerKind | None = None
    """Refuse the model if its tokeniser is of another kind; OpenNMT-py's `tokenizer` becomes this."""
    tgt_file_prefix: bool = False
    """API of OpenNMT-py: translations start with the text in `ref`."""
    generation: GenerationConfig = GenerationConfig()
    """Decoding options (those of `onmt_llm_translate`) that hold where a request sets none."""
    engine: EngineConfig = EngineConfig()
    """Device, precision and threads."""


class ServingConfig(Section):
    """The models."""

    models: dict[Annotated[str, Field(pattern=r"^[\w.:/-]+$")], ServedModelConfig] = Field(default_factory=dict)
    """The models by the name under which they are offered."""
    model: str | None = None
    """A checkpoint or CTranslate2 release to offer under the name of its folder, besides `models`."""
    idle_unload_seconds: PositiveOrZero = 0
    """Unload a model after this many seconds without a request; the next request loads it again. 0 = never."""


class ListeningConfig(Section):
    """Address, keys and logs of the server."""

    host: str = "127.0.0.1"
    """Address to listen on; the default serves this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 = any free one, which the log names."""
    url_root: Annotated[str, Field(pattern=r"^(/[\w.-]+)+$")] = "/translator"
    """What the paths of OpenNMT-py's API begin with."""
    api_keys_file: str | None = None
    """File of API keys, one per line, of which each request must send one (`Authorization: Bearer KEY`). Those of the
    environment variable ONMT_LLM_API_KEYS, separated by commas, are valid too. Without keys, everyone is served."""
    admin_keys_file: str | None = None
    """File of the keys that may reload models; those of ONMT_LLM_ADMIN_KEYS are valid too. Without keys, models cannot
    be reloaded."""
    cors_origins: list[str] = Field(default_factory=list)
    """Origins (`https://chat.example.org`) whose pages may send requests from a browser; `*` = all."""
    access_log: str = "-"
    """File that receives a JSON line for each request, without its texts; `-` = standard output, empty = none."""
    log_file: str | None = None
    """File that receives a copy of the log."""


class LimitsConfig(Section):
    """What requests may ask for."""

    max_body_bytes: Count = 1 << 20
    """Size of a request's body; beyond it, the answer is 413."""
    max_n: Annotated[int, Field(ge=1, le=1024)] = 8
    """Answers (`n`) to a prompt."""
    max_answer_tokens: Count = 4096
    """Tokens of an answer (`max_tokens`)."""
    max_queue: Count = 64
    """Answers that may wait for a model; beyond it, the answer is 429."""
    max_seconds: PositiveOrZero = 600
    """Seconds for an answer, waiting included; then it ends with the text that it has. 0 = no limit."""
    drain_seconds: PositiveOrZero = 60
    """Seconds that answers have to finish when the server is stopped."""


class ServeConfig(Section):
    """Serve models over HTTP, with the APIs of OpenAI, of OpenNMT-py's server and of LibreTranslate."""

    serving: ServingConfig = ServingConfig()
    listening: ListeningConfig = ListeningConfig()
    limits: LimitsConfig = LimitsConfig()
    integrity: IntegrityConfig = IntegrityConfig()

    @model_validator(mode="after")
    def _check(self) -> ServeConfig:
        wildcard = "*" in self.listening.cors_origins
        if wildcard and len(self.listening.cors_origins) > 1:
            raise ValueError("cors_origins must be * alone or a list of origins, but has both")
        return self
