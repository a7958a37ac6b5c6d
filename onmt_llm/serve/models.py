"""The models of a server: loaded when they are needed, replaced and unloaded while requests are answered."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from onmt_llm.config.checkpoint import SamplingDefaults
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.errors import CheckpointError, ConfigError
from onmt_llm.generate.engine import Engine
from onmt_llm.generate.scheduling.scheduler import Overloaded, Scheduler
from onmt_llm.generate.scheduling.ticket import Request
from onmt_llm.log import log_once, logger
from onmt_llm.registry import nearest
from onmt_llm.text.codec import Codec

_CHECK_TOKENS = 2
"""Tokens that a newly loaded model generates to show that it works."""
_CHECK_SECONDS = 300.0
"""Time limit for them."""


@dataclass(frozen=True)
class ModelSpec:
    """A model that a server offers.

    Attributes:
        name: What requests call it.
        open: Loads it.
        template: Name or file of the chat template; None = the checkpoint's, or alpaca where it has none.
        src_lang, tgt_lang: Languages of a multilingual model, by their codes; "" = the model's default.
        max_context_length: Maximum number of tokens of prompt and answer together; None = what the model was trained
            for.
        drop_old_rounds: Answer a chat that is too long without its oldest rounds.
        generation: How answers are generated where a request does not say. Options that are not set here are the
            model's own (`SamplingDefaults`).
        load_at_start: `ModelPool.load_all` loads it.
        idle_seconds: Unload it after this many seconds without use; None = as the pool does.
        device: Where it runs: "auto", "cpu", "cuda".
        tgt_file_prefix: Its translations start with the text in `ref` (API of OpenNMT-py).
        sources, targets: Languages that it translates from and into, by BCP 47 tag, with its own codes of them.
    """

    name: str
    open: Callable[[], Engine]
    template: str | None = None
    src_lang: str = ""
    tgt_lang: str = ""
    max_context_length: int | None = None
    drop_old_rounds: bool = False
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    load_at_start: bool = True
    idle_seconds: float | None = None
    device: str = "auto"
    tgt_file_prefix: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    targets: Mapping[str, str] = field(default_factory=dict)


class ServedModel:
    """A loaded model with its scheduler.

    Args:
        spec: What is loaded.
        max_queue: Requests that may wait for it.

    Attributes:
        created: Time at which it was loaded, in seconds since 1970.
        options: How answers are generated where a request does not say.
        template: Name or file of the chat template; None = the checkpoint's.

    Raises:
        OnmtLlmError: It cannot be loaded, or cannot answer.
    """

    def __init__(self, spec: ModelSpec, *, max_queue: int) -> None:
        engine = spec.open()
        self.spec = spec
        self.created = int(time.time())
        self.scheduler = Scheduler(engine, max_queue=max_queue)
        self.last_used = time.monotonic()
        self._users = 0
        self._closing = False
        self._changed = threading.Condition()
        try:
            self.options = with_model_defaults(spec.generation, self.codec.config.sampling)
            self.template = _template(spec, self.codec)
            self._check()
        except BaseException:
            self.scheduler.close(drain=False)
            raise

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def codec(self) -> Codec:
        """Vocabulary, tokeniser and template."""
        return self.scheduler.codec

    @property
    def is_chat_model(self) -> bool:
        """Whether it answers conversations: a language model."""
        return self.codec.task == "lm"

    @property
    def context_length(self) -> int:
        """Maximum number of tokens of prompt and answer together; of an encoder-decoder, of each."""
        return self.spec.max_context_length or self.codec.config.model.max_position

    def enter(self) -> bool:
        """Begin to use it; False = it is being closed, and another must be asked for."""
        with self._changed:
            self._users += not self._closing
            return not self._closing

    def leave(self) -> None:
        """End the use that `enter` began."""
        with self._changed:
            self._users -= 1
            self.last_used = time.monotonic()
            self._changed.notify_all()

    def is_idle(self, seconds: float) -> bool:
        """Whether it has not been used for this long."""
        with self._changed:
            return self._users == 0 and time.monotonic() - self.last_used >= seconds

    def close(self) -> None:
        """Wait until all its answers are complete, and stop its scheduler."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: self._users == 0)
        self.scheduler.close()

    def _check(self) -> None:
        """Let it answer once, so that a model that cannot is found before clients need it."""
        languages = self.codec.config.languages.example
        src, tgt = self.spec.src_lang or languages[0], self.spec.tgt_lang or languages[1]
        prompt = self.codec.for_languages(src, tgt).encode("A")
        options = GenerationConfig(max_length=_CHECK_TOKENS)
        ticket = self.scheduler.submit(Request(prompt, options, src_lang=src, tgt_lang=tgt), seconds=_CHECK_SECONDS)
        ticket.result()
        if ticket.was_stopped:
            raise CheckpointError(
                f"A model must generate {_CHECK_TOKENS} tokens within {_CHECK_SECONDS:.0f} s, but {self.name} does not."
            )


def with_model_defaults(generation: GenerationConfig, sampling: SamplingDefaults) -> GenerationConfig:
    """Decoding options, in which those that were not set are as the model's authors recommend."""
    if generation.beam_size > 1:
        return generation
    recommended: dict[str, float | None] = {"repetition_penalty": sampling.repetition_penalty}
    if sampling.do_sample:
        recommended |= {
            "random_sampling_temp": sampling.temperature,
            "random_sampling_topk": 0 if sampling.top_k is None else sampling.top_k,
            "random_sampling_topp": sampling.top_p,
        }
    unset = {
        name: value
        for name, value in recommended.items()
        if value is not None and name not in generation.model_fields_set
    }
    return generation.model_copy(update=unset)


def _template(spec: ModelSpec, codec: Codec) -> str | None:
    if codec.task == "seq2seq":
        return None
    if spec.template is not None:
        codec.chat_template(spec.template)  # an unknown one is an error now, not at the first request
        return spec.template
    if codec.template is None:
        log_once(f"The checkpoint of {spec.name} names no chat template: alpaca is used.")
        return "alpaca"
    return None


class ModelPool:
    """The models of a server, by name.

    Args:
        specs: The models.
        max_queue: Requests that may wait for each.
        idle_seconds: `unload_idle` unloads models that have not been used for this long, unless their specification has
            another time; 0 = never.

    Examples:
        >>> async with pool.use("llama") as model:
        ...     ticket = model.scheduler.submit(...)
    """

    def __init__(self, specs: Iterable[ModelSpec], *, max_queue: int = 64, idle_seconds: float = 0) -> None:
        self._specs: Mapping[str, ModelSpec] = {spec.name: spec for spec in specs}
        self._loaded: dict[str, ServedModel] = {}
        self._max_queue, self.idle_seconds = max_queue, idle_seconds
        self._changing = threading.RLock()  # held while models are loaded, replaced or unloaded
        self._loader = ThreadPoolExecutor(1, "model-loader")
        self._waiting_for_loader = 0
        self._draining: list[threading.Thread] = []

    @property
    def names(self) -> list[str]:
        return list(self._specs)

    @property
    def shortest_idle_seconds(self) -> float:
        """The least time after which a model is unloaded; 0 = none ever is."""
        return min(filter(None, map(self.idle_seconds_of, self._specs.values())), default=0)

    def idle_seconds_of(self, spec: ModelSpec) -> float:
        """After what time without use a model is unloaded; 0 = never."""
        return self.idle_seconds if spec.idle_seconds is None else spec.idle_seconds

    @property
    def loaded(self) -> list[ServedModel]:
        """The models that are in memory."""
        return list(self._loaded.values())

    def spec(self, name: str) -> ModelSpec:
        """What is offered under a name.

        Raises:
            UnknownModel: Nothing is.
        """
        try:
            return self._specs[name]
        except KeyError:
            raise UnknownModel(name, self.names) from None

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[ServedModel]:
        """A loaded model, which stays loaded until the block ends.

        Raises:
            UnknownModel: There is none of this name.
            Overloaded: Too many requests are waiting for models to be loaded.
            OnmtLlmError: It cannot be loaded.
        """
        self.spec(name)
        model = self._loaded.get(name)
        if model is None or not model.enter():
            model = await self._enter_soon(name)
        try:
            yield model
        finally:
            model.leave()

    async def _enter_soon(self, name: str) -> ServedModel:
        if self._waiting_for_loader >= self._max_queue:
            raise Overloaded(f"At most {self._max_queue} requests may wait for a model, and as many are waiting.")
        self._waiting_for_loader += 1
        entering = self._loader.submit(self.enter, name)
        try:
            return await asyncio.wrap_future(entering)
        except asyncio.CancelledError:
            # The client has gone, but a thread that has begun enters the model all the same, and maybe after the loop
            # has ended: the thread itself leaves the model.
            entering.add_done_callback(_leave)
            raise
        finally:
            self._waiting_for_loader -= 1

    @property
    def is_idle(self) -> bool:
        """Whether no model answers, and no request waits for one that is being loaded."""
        draining = any(thread.is_alive() for thread in self._draining)
        return not self._waiting_for_loader and not draining and all(model.is_idle(0) for model in self.loaded)

    def enter(self, name: str) -> ServedModel:
        """Load a model if need be, and enter it (`ServedModel.enter`)."""
        while True:
            model = self._loaded.get(name) or self.load(name)
            if model.enter():
                return model

    def load(self, name: str) -> ServedModel:
        """Load a model, unless it is loaded.

        Raises:
            OnmtLlmError: There is none of this name, or it cannot be loaded.
        """
        with self._changing:
            if name not in self._loaded:
                self._loaded[name] = self._open(self.spec(name))
            return self._loaded[name]

    def load_all(self) -> None:
        """Load the models that are wanted from the start."""
        for spec in self._specs.values():
            if spec.load_at_start:
                self.load(spec.name)

    def unload(self, name: str) -> bool:
        """Remove a model from memory as soon as its answers are complete; the next request loads it again.

        Returns:
            Whether it was loaded.
        """
        with self._changing:
            self.spec(name)
            model = self._loaded.pop(name, None)
            if model is not None:
                logger.info("Model %s is unloaded.", name)
                self._drain(model)
            return model is not None

    def unload_idle(self) -> None:
        """Unload the models that have not been used for their own idle time, or for `idle_seconds`."""
        for model in self.loaded:
            seconds = self.idle_seconds_of(model.spec)
            if seconds and model.is_idle(seconds):
                self.unload(model.name)

    def reload(self, specs: Sequence[ModelSpec] | None = None) -> list[str]:
        """Load the models that are in memory again, with new files or new settings, and replace them.

        Requests are answered all the while: by the old model until the new one has been loaded and has answered once.

        Args:
            specs: The models to offer from now on; None = the same.

        Returns:
            Names of the models that were loaded.

        Raises:
            OnmtLlmError: One cannot be loaded; then everything stays as it was.
        """
        with self._changing:
            offered = self._specs if specs is None else {spec.name: spec for spec in specs}
            fresh: dict[str, ServedModel] = {}
            try:
                for name, spec in offered.items():
                    if name in self._loaded or (name not in self._specs and spec.load_at_start):
                        fresh[name] = self._open(spec)
            except BaseException:
                for model in fresh.values():
                    model.close()
                raise
            old = list(self._loaded.values())
            self._specs, self._loaded = offered, fresh
            for model in old:
                self._drain(model)
            return list(fresh)

    def close(self) -> None:
        """Finish all answers, and stop the schedulers."""
        self._loader.shutdown(cancel_futures=True)
        with self._changing:
            for name in list(self._loaded):
                self._drain(self._loaded.pop(name))
        for thread in self._draining:
            thread.join()

    def _open(self, spec: ModelSpec) -> ServedModel:
        begun = time.monotonic()
        model = ServedModel(spec, max_queue=self._max_queue)
        logger.info("Model %s is loaded (%.1f s).", spec.name, time.monotonic() - begun)
        return model

    def _drain(self, model: ServedModel) -> None:
        self._draining = [thread for thread in self._draining if thread.is_alive()]
        thread = threading.Thread(target=model.close, name=f"drain {model.name}", daemon=True)
        thread.start()
        self._draining.append(thread)


def _leave(entering: Future[ServedModel]) -> None:
    if not entering.cancelled() and entering.exception() is None:
        entering.result().leave()


class UnknownModel(ConfigError):
    """A request names a model that the server does not offer."""

    def __init__(self, name: str, offered: Sequence[str]) -> None:
        guess = nearest(name, offered)
        hint = f"did you mean '{guess}'?" if guess else None
        super().__init__(f"The model must be one of {', '.join(offered) or 'none'}, but is '{name[:200]}'.", hint=hint)
