"""The configuration of OpenNMT-py's REST server (`available_models/conf.json`) in the words of `onmt_llm_serve`.

`onmt_llm_serve -config conf.json` offers each model under its `id`. What has no counterpart is refused by name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from onmt_llm.config.compat.opennmt_meanings import sample_as_opennmt
from onmt_llm.config.compat.values import Translation
from onmt_llm.config.generate import GenerationConfig
from onmt_llm.config.section import Section
from onmt_llm.config.translate import EngineConfig
from onmt_llm.errors import ConfigError

TranslateOptions = Callable[[dict[str, Any], set[str]], Translation]
"""`compat.translate.translate`"""

_DEFAULTS = {"beam_size": 5, "max_length": 250}
"""OpenNMT-py's, where ours differ."""
_KNOWN = {"id", "model", "models", "model_root", "timeout", "on_timeout", "load", "opt", "tokenizer", "ct2_model"}
_KNOWN |= {"ct2_translator_args", "ct2_translate_batch_args"}
_REFUSED = {
    "preprocess": "functions of other modules are not called; a transform of the package does that",
    "postprocess": "functions of other modules are not called; a transform of the package does that",
    "custom_opt": "only functions in `preprocess` and `postprocess` read it",
    "features": "features are stored in the checkpoint, and texts carry them as `word￨value`",
}
_CT2_ENGINE = {"intra_threads": "threads", "compute_type": "compute_type", "device": "device"}
_CT2_SEARCH = {
    "beam_size": "beam_size",
    "num_hypotheses": "n_best",
    "max_decoding_length": "max_length",
    "min_decoding_length": "min_length",
    "length_penalty": "alpha",
    "repetition_penalty": "repetition_penalty",
    "no_repeat_ngram_size": "block_ngram_repeat",
    "disable_unk": "ban_unk_token",
    "sampling_topk": "random_sampling_topk",
    "sampling_topp": "random_sampling_topp",
    "sampling_temperature": "random_sampling_temp",
    "replace_unknowns": "replace_unk",
}
_CT2_IGNORED = {
    "inter_threads": "one thread runs the model, for many requests at once",
    "device_index": "the first GPU is used",
    "max_batch_size": "the scheduler makes the batches",
    "batch_type": "the scheduler makes the batches",
    "max_queued_batches": "`max_queue` limits the requests that wait",
}


def is_opennmt_server(models: Any) -> bool:
    """Whether the value of `models` is that of OpenNMT-py's server: a list of mappings."""
    return isinstance(models, list) and bool(models) and all(isinstance(entry, dict) for entry in models)


def translate_models(user: Mapping[str, Any], result: Translation, translate: TranslateOptions) -> dict[str, Any]:
    """The models by their ids, as `onmt_llm_serve` has them.

    Args:
        user: The configuration: `models` and `models_root`.
        result: Receives notes and errors.
        translate: Translates the options in `opt`.
    """
    root = str(user.get("models_root") or "./available_models")
    found: dict[str, Any] = {}
    for name, entry in zip(_ids(user["models"]), user["models"], strict=True):
        if name in found:
            result.errors.append(("models", f"'id' of each model must be its own, but two have {name}."))
        found[name] = _Served(name, entry, result).translate(root, translate)
    return found


def search_options(opt: Any, translate: TranslateOptions) -> dict[str, Any]:
    """Decoding options of ours for those in `opt`.

    Raises:
        ConfigError: One is not supported, or is about the model itself.
    """
    result = Translation()
    if not isinstance(opt, dict):
        raise ConfigError("'opt' must be a mapping of options, but is not.")
    # the scheduler makes the batches, whatever their size is to be
    of_model = sorted((_names(EngineConfig) - {"batch_size", "batch_type"} | {"tgt_file_prefix"}).intersection(opt))
    if of_model:
        raise ConfigError(f"'{of_model[0]}' must be left out of a clone, which shares the model, but is given.")
    found = _Served("clone", {"model": "-", "opt": opt}, result).translate("", translate)
    if result.errors:
        raise ConfigError(result.errors[0][1])
    generation: dict[str, Any] = found["generation"]
    return generation


def _ids(entries: list[dict[str, Any]]) -> Iterator[str]:
    """The ids; a model without one has the lowest number that no model before it has."""
    taken: set[str] = set()
    for entry in entries:
        free = next(str(number) for number in range(len(entries) + 1) if str(number) not in taken)
        name = free if entry.get("id") is None else str(entry["id"])
        taken.add(name)
        yield name


class _Served:
    """One of `models`."""

    def __init__(self, name: str, entry: dict[str, Any], result: Translation) -> None:
        self._name, self._entry, self._result = name, entry, result

    def translate(self, root: str, translate: TranslateOptions) -> dict[str, Any]:
        """The model as a section of ours."""
        entry = self._entry
        for key in entry:
            if key in _REFUSED:
                self._refuse(key, "must be left out", _REFUSED[key])
            elif key not in _KNOWN:
                self._refuse(key, "must be left out", "OpenNMT-py's server has no such key")
        served: dict[str, Any] = {"load_at_start": bool(entry.get("load", False))}
        path = self._path(str(entry.get("model_root") or root))
        if path is not None:
            served["model"] = path
        timeout = entry.get("timeout", -1)
        if isinstance(timeout, int | float) and timeout > 0:
            served["idle_unload_seconds"] = timeout
            if entry.get("on_timeout", "to_cpu") == "to_cpu":
                self._note("on_timeout", "has no effect: a model whose time is over is unloaded")
        kind = self._tokenizer()
        if kind is not None:
            served["expected_tokenizer"] = kind
        return {**served, **self._options(translate)}

    def _path(self, root: str) -> str | None:
        entry = self._entry
        models = [entry["ct2_model"]] if entry.get("ct2_model") else entry.get("models") or entry.get("model")
        models = [models] if isinstance(models, str) else models
        if not isinstance(models, list) or not models or not all(isinstance(model, str) for model in models):
            self._refuse("model", "must name a model", "a path below models_root")
            return None
        if len(models) > 1:
            self._refuse("models", "must have one entry", "onmt_llm_checkpoint average makes one model of several")
        return os.path.join(root, models[0])

    def _tokenizer(self) -> str | None:
        """The kind of tokeniser that the model must have."""
        tokenizer = self._entry.get("tokenizer")
        if not isinstance(tokenizer, dict):
            return None
        self._note("tokenizer", "has no effect, except that the model must have one of this kind, in its checkpoint")
        target = tokenizer.get("tgt", tokenizer)
        kind = target.get("type") if isinstance(target, dict) else None
        if kind == "sentencepiece":
            return "sentencepiece"
        if kind != "pyonmttok":
            self._refuse("tokenizer.type", "must be sentencepiece or pyonmttok", "no other is known")
            return None
        only_splits = target.get("mode") in ("space", "none", None)  # as the tokeniser `whitespace` does
        has_model = any(key.endswith("path") for key in target.get("params") or {})
        return "onmt_tokenize" if has_model or not only_splits else None

    def _options(self, translate: TranslateOptions) -> dict[str, dict[str, Any]]:
        """The sections `generation` and `engine`, and options beside them."""
        generation, engine = _names(GenerationConfig), _names(EngineConfig)
        own = {*generation, *engine, "tgt_file_prefix"}
        opt = self._entry.get("opt") or {}
        translated = translate(dict(opt), own)
        sample_as_opennmt(translated, replaces_beams=True)
        for key, sentence in translated.notes:
            self._note(f"opt.{key}", sentence, whole=True)
        for _, sentence in translated.errors:
            self._result.errors.append(("models", f"Model {self._name}: {sentence}"))
        samples = any(opt.get(key) for key in ("random_sampling_topk", "random_sampling_topp"))
        values = {**_DEFAULTS, **({"beam_size": 1} if samples else {}), **translated.values, **self._ct2_options()}
        for key in sorted(set(values) - own):
            self._refuse(f"opt.{translated.sources.get(key, key)}", "must be left out", "it is no option of a server")
        return {
            "generation": {key: value for key, value in values.items() if key in generation},
            "engine": {key: value for key, value in values.items() if key in engine},
            **{key: value for key, value in values.items() if key == "tgt_file_prefix"},
        }

    def _ct2_options(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for section, names in (("ct2_translator_args", _CT2_ENGINE), ("ct2_translate_batch_args", _CT2_SEARCH)):
            for key, value in (self._entry.get(section) or {}).items():
                if key in names:
                    found[names[key]] = value
                elif key in _CT2_IGNORED:
                    self._note(f"{section}.{key}", f"has no effect: {_CT2_IGNORED[key]}")
                else:
                    self._refuse(
                        f"{section}.{key}", "must be left out", "this argument of CTranslate2 is not supported"
                    )
        return found

    def _note(self, key: str, sentence: str, *, whole: bool = False) -> None:
        text = sentence if whole else f"'{key}' {sentence}."
        self._result.notes.append(("models", f"Model {self._name}: {text}"))

    def _refuse(self, key: str, must: str, why: str) -> None:
        self._result.errors.append(("models", f"'{key}' of model {self._name} {must}: {why}."))


def _names(section: type[Section]) -> set[str]:
    return set(section.model_fields)
