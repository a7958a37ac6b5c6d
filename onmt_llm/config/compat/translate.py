"""Translate the option names and values of OpenNMT-py and other toolkits into ours.

`translate` runs before anything is validated. `names` has the tables of renamed and removed options, `values` the
options whose values need translating. No other module knows these names and values.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from onmt_llm.config.compat.litgpt import is_litgpt, translate_litgpt
from onmt_llm.config.compat.names import CORPUS_RENAMED, IGNORED, OF_OTHER_TOOLKITS, RENAMED, RETIRED, RETIRED_DEFAULTS
from onmt_llm.config.compat.opennmt_meanings import note_adafactor, sample_as_opennmt
from onmt_llm.config.compat.server import is_opennmt_server, translate_models
from onmt_llm.config.compat.sharding import SHARDING, STRUCTURED
from onmt_llm.config.compat.values import TRANSLATORS, Translation

_TRANSLATORS = {**TRANSLATORS, **SHARDING}
_FORMER_KINDS: dict[str, dict[type, str]] = {
    "data": {
        str: "'data' must be a mapping of corpora, `corpus_1: {path_src: FILE, path_tgt: FILE}`, but is the prefix of "
        "OpenNMT-py 1's preprocessed files: name the original files."
    },
    "tgt_prefix": {
        bool: "'tgt_prefix' must be text, but is true or false: that flag of OpenNMT-py 2 is `tgt_file_prefix`."
    },
}
"""Options whose values were of another kind before OpenNMT-py 3, and the sentence about it."""
_OPENNMT_GPU_OPTIONS = {"world_size", "gpu_ranks"}


def translate(user: dict[str, Any], own: Collection[str] = ()) -> Translation:
    """Translate a user's flat options into ours.

    Args:
        user: Names and values as written.
        own: Options of the job; these are never taken for removed options of OpenNMT-py.
    """
    result = Translation()
    later: list[str] = []
    if "optim" in own and is_litgpt(user):
        user = translate_litgpt(user, result)
    for key, value in user.items():
        if key == "models" and is_opennmt_server(value):
            result.put(key, translate_models(user, result, translate), key)
        elif key == "models_root" and "models" in user:
            continue
        elif key in own and type(value) in _FORMER_KINDS.get(key, {}):
            result.errors.append((key, _FORMER_KINDS[key][type(value)]))
        elif key in own and key not in _TRANSLATORS:
            result.put(key, _corpora(value) if key == "data" else value, key)
        elif key in RETIRED:
            if value not in (None, False, 0, "", "none", RETIRED_DEFAULTS.get(key)):
                result.errors.append(
                    (key, f"'{key}' is an option of OpenNMT-py that is no longer supported: {RETIRED[key]}.")
                )
        elif key in IGNORED:
            result.notes.append((key, f"'{key}' has no effect: {IGNORED[key]}."))
        elif key in RENAMED:
            result.put(RENAMED[key], value, key)
        elif key in _TRANSLATORS:
            later.append(key)
        else:
            result.put(key, value, key)
    # last, so that they do not override what the user wrote in our names
    for key in _TRANSLATORS:
        if key not in later or user[key] is None:  # null is the default
            continue
        if isinstance(user[key], list | dict) and key not in STRUCTURED:
            noun = "list" if isinstance(user[key], list) else "mapping"
            result.errors.append((key, f"'{key}' must be a single value, but is a {noun}."))
        else:
            _TRANSLATORS[key].apply(user, result)
    if is_for_opennmt(user, own):
        sample_as_opennmt(result, replaces_beams=False)
        note_adafactor(result)
    return result


def _corpora(data: Any) -> Any:
    """The corpora of `data:`, with Axolotl's names of their options translated; our own names take precedence."""
    if not isinstance(data, dict):
        return data
    return {name: _corpus(entry) if isinstance(entry, dict) else entry for name, entry in data.items()}


def _corpus(entry: dict[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in entry.items() if key not in CORPUS_RENAMED}
    foreign = {CORPUS_RENAMED[key]: value for key, value in entry.items() if key in CORPUS_RENAMED}
    mappings = own.get("message_property_mappings")
    if isinstance(mappings, dict) and set(mappings) <= {"role", "content"}:
        foreign.update({f"{key}_key": value for key, value in mappings.items()})
        del own["message_property_mappings"]
    return {**foreign, **own}


def known_names() -> set[str]:
    """All foreign names that are accepted or refused with an explanation."""
    return {*RENAMED, *IGNORED, *RETIRED, *_TRANSLATORS}


def effective_names() -> set[str]:
    """The foreign names that have an effect."""
    return known_names() - inert_names()


def inert_names() -> set[str]:
    """The foreign names without effect; they are never suggested as corrections."""
    return {*IGNORED, *RETIRED}


def is_for_opennmt(user: Collection[str], own: Collection[str]) -> bool:
    """Whether a configuration was written for OpenNMT-py: it has options that only OpenNMT-py has.

    Args:
        user: Option names as written.
        own: Our option names.
    """
    return any(
        key in _OPENNMT_GPU_OPTIONS
        or (key in known_names() and key not in own and key not in {*OF_OTHER_TOOLKITS, *SHARDING})
        for key in user
    )


def describe(name: str) -> str | None:
    """How a foreign name is supported, in one sentence for the documentation; None if it is unknown."""
    if name in RENAMED:
        return f"accepted: `{RENAMED[name]}`"
    if name in IGNORED:
        return f"accepted without effect: {IGNORED[name]}"
    if name in RETIRED:
        return f"not supported: {RETIRED[name]}"
    if name in _TRANSLATORS:
        return f"accepted: {_TRANSLATORS[name].meaning}"
    return None
