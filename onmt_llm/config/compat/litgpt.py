"""YAML files of litgpt's `pretrain`: each of their keys is translated or refused by name.

Such a file has a mapping `train`. Keys that are null are at litgpt's default, and have no effect here either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from onmt_llm.config.compat.values import Translation

_TRAIN = {
    "save_interval": "save_checkpoint_steps",
    "log_interval": "report_every",
    "global_batch_size": "global_batch_size",
    "micro_batch_size": "batch_size",
    "lr_warmup_steps": "warmup_steps",
    "epochs": "epochs",
    "max_tokens": "max_tokens",
    "max_steps": "train_steps",
    "max_time": "max_time",
    "max_seq_length": "packing_length",
    "tie_embeddings": "tie_embeddings",
    "max_norm": "max_grad_norm",
    "min_lr": "min_learning_rate",
}
_OPTIMIZER = {"lr": "learning_rate", "weight_decay": "weight_decay", "eps": "adam_eps"}
_PRECISION: dict[str, dict[str, Any]] = {
    "bf16-true": {"model_dtype": "bf16", "pure_bf16": True},
    "bf16-mixed": {"model_dtype": "bf16"},
    "16-mixed": {"model_dtype": "fp16"},
    "32-true": {"model_dtype": "fp32"},
}
_LOGGERS: dict[str, dict[str, Any]] = {
    "csv": {},
    "tensorboard": {"tensorboard": True},
    "wandb": {"wandb": True},
    "mlflow": {"mlflow": True},
}
_DEFAULTS: dict[str, Any] = {
    "packing": "wrap",
    "isolate_documents": False,
    "decay_method": "cosine",
    "model_task": "lm",
}
"""What litgpt always does."""
_WITHOUT_EFFECT = {
    "devices": "torchrun starts the processes (onmt_llm_launch writes how)",
    "num_nodes": "torchrun starts the processes (onmt_llm_launch writes how)",
    "eval.max_iters": "a validation reads the whole corpus valid",
    "eval.max_new_tokens": "validation texts are not generated",
    "eval.evaluate_example": "validation texts are not generated",
    "eval.final_validation": "there is always a validation at the end",
    "init_args.fused": "the optimiser is fused where it can be",
}
_REFUSED = {
    "model_name": "a new model is described by the section architecture, and a trained one named by train_from",
    "model_config": "a new model is described by the section architecture, and a trained one named by train_from",
    "tokenizer_dir": "src_subword_model names the file of the tokeniser",
    "train.lr_warmup_fraction": "warmup_steps is a number of steps",
    "eval.initial_validation": "the first validation is after valid_steps",
}


def is_litgpt(user: Mapping[str, Any]) -> bool:
    """Whether options as written are those of a file of litgpt."""
    return isinstance(user.get("train"), dict)


def translate_litgpt(user: Mapping[str, Any], result: Translation) -> dict[str, Any]:
    """Translate the keys of litgpt; returns the others."""
    rest: dict[str, Any] = {}
    for key, value in user.items():
        if key in _SECTIONS and isinstance(value, dict):
            for name, inner in value.items():
                _SECTIONS[key](name, inner, result)
        elif key in _KEYS:
            if value is not None:
                _KEYS[key](value, result)
        elif not _refuse_or_note(key, value, key, result):
            rest[key] = value
    for option, value in _DEFAULTS.items():
        if option not in rest:
            result.put_default(option, value, "train")
    return rest


def _refuse_or_note(key: str, value: Any, source: str, result: Translation) -> bool:
    """Whether the key is one that is refused, or that has no effect."""
    if key in _WITHOUT_EFFECT:
        if value is not None:
            result.notes.append((source, f"'{key}' has no effect: {_WITHOUT_EFFECT[key]}."))
        return True
    if key in _REFUSED:
        if value not in (None, False):
            result.errors.append((source, f"'{key}' is an option of litgpt that has no counterpart: {_REFUSED[key]}."))
        return True
    return False


def _named(table: Mapping[str, str], section: str) -> Callable[[str, Any, Translation], None]:
    """Translates the keys of a section by their names."""

    def translate(name: str, value: Any, result: Translation) -> None:
        key = f"{section}.{name}"
        if name in table:
            if value is not None:
                result.put(table[name], value, section)
        elif not _refuse_or_note(key, value, section, result):
            known = ", ".join(sorted(table))
            result.errors.append((section, f"'{key}' is not a known option of litgpt: those of {section} are {known}."))

    return translate


def _optimizer_argument(name: str, value: Any, result: Translation) -> None:
    if name == "betas" and isinstance(value, list) and len(value) == 2:
        result.put("adam_beta1", value[0], "init_args")
        result.put("adam_beta2", value[1], "init_args")
    else:
        _named(_OPTIMIZER, "init_args")(name, value, result)


def _data(value: Any, result: Translation) -> None:
    """The corpus: that of `LitData`, or of `TextFiles`."""
    kind = value.get("class_path") if isinstance(value, dict) else value
    arguments = value.get("init_args") or {} if isinstance(value, dict) else {}
    name = str(kind).rpartition(".")[2]
    if name == "LitData" and arguments.get("data_path"):
        path, splits = arguments["data_path"], arguments.get("split_names") or []
        if len(splits) == 2:
            train, valid = (f"{path}/{split}" for split in splits)
            result.put("data", {"train": {"path_tokens": train}, "valid": {"path_tokens": valid}}, "data")
        else:
            result.put("data", {"train": {"path_tokens": path}}, "data")
    elif name == "TextFiles" and arguments.get("train_data_path"):
        paths = {"train": arguments["train_data_path"], "valid": arguments.get("val_data_path")}
        corpora = {each: {"path_txt": f"{path}/*.txt", "documents_by": "file"} for each, path in paths.items() if path}
        result.put("data", corpora, "data")
    elif isinstance(value, dict) and "class_path" not in value:
        result.put("data", value, "data")  # our own
    else:
        sentence = f"'data' must be LitData with data_path or TextFiles with train_data_path, but is {name}: other "
        result.errors.append(("data", f"{sentence}classes of litgpt download what they read; name its files."))


def _resume(value: Any, result: Translation) -> None:
    if value in (True, "auto"):
        source = "resume"
        if result.sources.get("train_from") == "initial_checkpoint_dir":
            result.put("init_from", result.values["train_from"], "initial_checkpoint_dir")
            source = "initial_checkpoint_dir"
        result.put("train_from", "auto", source)
    elif value:
        result.put("train_from", value, "resume")


def _checkpoint(value: Any, result: Translation) -> None:
    if result.values.get("train_from") == "auto":
        result.put("init_from", value, "initial_checkpoint_dir")
    else:
        result.put_default("train_from", value, "initial_checkpoint_dir")


def _choice(key: str, table: Mapping[str, Mapping[str, Any]]) -> Callable[[Any, Translation], None]:
    def translate(value: Any, result: Translation) -> None:
        if value not in table:
            result.errors.append((key, f"'{key}' must be one of {', '.join(table)}, but is '{value}'."))
        for option, each in table.get(value, {}).items():
            result.put(option, each, key)

    return translate


def _class_path(value: Any, result: Translation) -> None:
    if str(value).rpartition(".")[2] not in ("AdamW", "FusedAdam"):
        result.errors.append(
            ("class_path", f"'class_path' of the optimiser must be AdamW, but is '{value}': set optim.")
        )
    result.put("optim", "adamw", "class_path")


_SECTIONS: dict[str, Callable[[str, Any, Translation], None]] = {
    "train": _named(_TRAIN, "train"),
    "eval": _named({"interval": "valid_steps"}, "eval"),
    "init_args": _optimizer_argument,
}
_KEYS: dict[str, Callable[[Any, Translation], None]] = {
    "data": _data,
    "resume": _resume,
    "initial_checkpoint_dir": _checkpoint,
    "out_dir": lambda value, result: result.put("save_model", f"{value}/model", "out_dir"),
    "precision": _choice("precision", _PRECISION),
    "logger_name": _choice("logger_name", _LOGGERS),
    "class_path": _class_path,
    "optimizer": _class_path,
}
