"""Upload models to the Hugging Face Hub, and download them, verified.

The token is that of `hf auth login` or of the environment; it is never passed in here. Both directions can be repeated
after an interruption: the Hub does not ask again for large files that it has, and a download continues where it
stopped, in a hidden directory beside the output.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

from onmt_llm.atomic import AtomicDirectory, check_output
from onmt_llm.checkpoint.directory import (
    MANIFEST_FILE,
    STATE_PREFIX,
    find_damage,
    manifest_without_state,
    read_manifest,
    refuse_damage,
)
from onmt_llm.checksums import sha256_of_file
from onmt_llm.config.checkpoint import CARD_FILE, CONFIG_FILE
from onmt_llm.errors import CheckpointError, ConfigError, OnmtLlmError, UnsupportedError
from onmt_llm.log import logger
from onmt_llm.optional import require

_MARKS = (CONFIG_FILE, "config.json", "adapter_config.json", "params.json", "*.gguf")
"""Files of which a model's directory has at least one."""
_CACHE = ".cache"
"""Where the Hub's client keeps the state of a download."""
_SMALL = 1 << 20
_AGAIN = "run the command again: what is complete is not transferred again"


def upload(
    model: str | Path,
    repo: str,
    *,
    private: bool = True,
    revision: str | None = None,
    message: str | None = None,
    train_state: bool = False,
) -> str:
    """Upload a model in one commit, and create the repository and the branch if there are none.

    Args:
        model: A checkpoint, adapter, release or export; a directory, or one file.
        repo: `OWNER/NAME`.
        private: A repository that is created is private.
        revision: The branch; None = `main`.
        message: Message of the commit; None = one that names the model.
        train_state: Upload the training state of a checkpoint too.

    Returns:
        The address of the commit.

    Raises:
        CheckpointError: It is no model, or damaged; the Hub refuses it, or cannot be reached.
        ConfigError: `repo` cannot be the name of a repository.
        UnsupportedError: huggingface_hub is not installed.
    """
    hub = _client()
    files = _files_to_upload(Path(model), train_state=train_state)
    _warn_about_paths(files, Path(model))
    operations = [hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=file) for name, file in files.items()]
    with _translated(hub, repo):
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        others = sorted({*api.list_repo_files(repo, revision=revision)} - {*files, ".gitattributes"})
        message = message or f"Upload {Path(model).resolve().name}"
        commit = api.create_commit(repo, operations, commit_message=message, revision=revision)
    if others:
        logger.warning("%s keeps files that are not of this model: %s.", repo, ", ".join(others[:10]))
    return str(commit.commit_url)


def download(
    repo: str, output: str | Path, *, revision: str | None = None, overwrite: bool = False, dataset: bool = False
) -> Path:
    """Download all files of a repository into a directory that gets its name when they are verified.

    Every file is compared with the checksum that the Hub has of it, and a model with a manifest with its manifest.

    Args:
        repo: `OWNER/NAME`.
        output: The directory to write.
        revision: A branch, tag or commit; None = `main`.
        overwrite: Replace a model at `output`.
        dataset: The repository is one of a dataset.

    Returns:
        `output`.

    Raises:
        CheckpointError: There is no such model, a file is damaged, the output exists, or the Hub cannot be reached.
        ConfigError: `repo` cannot be the name of a repository.
        UnsupportedError: huggingface_hub is not installed.
    """
    hub, output = _client(), Path(output)
    check_output(output, overwrite=overwrite)
    partial = output.absolute().with_name(f".{output.name}.download")
    with _translated(hub, repo):
        api = hub.HfApi()
        kind = "dataset" if dataset else "model"
        commit = api.repo_info(repo, revision=revision, repo_type=kind).sha
        for entry in api.list_repo_tree(repo, recursive=True, revision=commit, repo_type=kind):
            if isinstance(entry, hub.hf_api.RepoFile) and entry.path != ".gitattributes":
                _check_name(entry.path, repo)
                file = Path(api.hf_hub_download(repo, entry.path, revision=commit, repo_type=kind, local_dir=partial))
                _check_file(file, entry, repo)
    refuse_damage(partial, find_damage(partial, thorough=True) if (partial / MANIFEST_FILE).is_file() else [])
    with AtomicDirectory(output, overwrite=overwrite) as directory, directory.translated_errors():
        for file in sorted(partial.iterdir()):
            if file.name != _CACHE:
                file.rename(directory.directory / file.name)
    shutil.rmtree(partial, ignore_errors=True)
    return output


def cache_dataset(repo: str, revision: str, patterns: Sequence[str]) -> str:
    """Make sure that files of a dataset are in the Hub's cache; the Hub is asked only if they are not.

    Args:
        repo: `OWNER/NAME`.
        revision: A branch, tag or commit.
        patterns: The files; `*` also stands for `/`.

    Returns:
        The commit that the revision stands for.

    Raises:
        CheckpointError: There is no such dataset, or the Hub cannot be reached.
        ConfigError: `repo` cannot be the name of a repository.
        UnsupportedError: huggingface_hub is not installed.
    """
    hub = _client()
    fetch = functools.partial(
        hub.snapshot_download, repo, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
    )
    with contextlib.suppress(hub.errors.LocalEntryNotFoundError):
        if _is_listed(hub, repo, revision):
            return Path(fetch(local_files_only=True)).name
    with _translated(hub, repo):
        commit = Path(fetch()).name
    if _is_listed(hub, repo, commit) is False:
        logger.warning("The Hub cannot be reached: the cache has files of %s, but may not have all.", repo)
    return commit


def _is_listed(hub: ModuleType, repo: str, revision: str) -> bool | None:
    """Whether the cache knows the names of all files of a revision; None = this huggingface_hub does not say."""
    if not hasattr(hub, "get_cached_repo_tree"):
        return None
    try:
        return bool(hub.get_cached_repo_tree(repo, repo_type="dataset", revision=revision))
    except hub.errors.CachedRepoTreeNotFoundError:
        return False


def next_command(model: Path) -> str:
    """The command with which a downloaded model is used."""
    if (model / "adapter_config.json").is_file():
        return f"onmt_llm_lora -action import -base_model BASE -lora_weights {model} -output ADAPTER"
    if (model / CONFIG_FILE).is_file() and not any(model.glob("*.gguf")):
        return f"onmt_llm_chat -model {model}"
    return f"onmt_llm_convert -model_dir {model} -output CHECKPOINT"


def _client() -> ModuleType:
    try:
        require("huggingface_hub.hf_api", "onmt_llm_hub", "huggingface_hub")
        require("huggingface_hub.errors", "onmt_llm_hub", "huggingface_hub")
        return require("huggingface_hub", "onmt_llm_hub")
    except UnsupportedError as error:
        raise UnsupportedError(error.message, hint="pip install 'onmt_llm[hub]'") from error


def _files_to_upload(model: Path, *, train_state: bool) -> dict[str, Path | bytes]:
    """The files of a model by their names in the repository.

    Raises:
        CheckpointError: It is no model, or damaged.
    """
    if model.is_file() and model.suffix == ".gguf":
        return {model.name: model}
    if not any(file.is_file() for mark in _MARKS for file in model.glob(mark)):
        raise CheckpointError(
            f"The folder to upload must hold a model ({', '.join(_MARKS)}), but {model} does not.",
            hint="onmt_llm_convert -to hf, onmt_llm_lora -action export and release_model write such folders",
        )
    manifest = read_manifest(model)
    if manifest is None:
        names = [path.relative_to(model).as_posix() for path in sorted(model.rglob("*")) if path.is_file()]
        shown = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
        return {name: model / name for name in shown}
    refuse_damage(model, find_damage(model))
    files: dict[str, Path | bytes] = {name: model / name for name in manifest.files}
    if not train_state:
        files = {name: file for name, file in files.items() if not name.startswith(STATE_PREFIX)}
    whole = len(files) == len(manifest.files)
    files[MANIFEST_FILE] = model / MANIFEST_FILE if whole else manifest_without_state(model).encode()
    card = model / CARD_FILE
    return {**files, CARD_FILE: card} if card.is_file() else files


def _warn_about_paths(files: Mapping[str, Path | bytes], model: Path) -> None:
    """Warn about small text files with paths of this machine: the base of an adapter, the source of a release."""
    places = {str(Path.home()), str(model.resolve().parent)} - {"/"}
    for name, file in files.items():
        if isinstance(file, Path) and file.suffix in (".json", ".yaml") and file.stat().st_size < _SMALL:
            text = file.read_text(encoding="utf-8", errors="replace")
            if any(place in text for place in places):
                logger.warning("%s names paths of this machine, which all readers of the repository see.", name)


def _check_name(name: str, repo: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise CheckpointError(f"The files of {repo} must stay in its directory, but one is called '{name}'.")


def _check_file(file: Path, entry: Any, repo: str) -> None:
    """Compare a downloaded file with the Hub's checksum: SHA-256 of a large file, git's SHA-1 of any other."""
    if entry.lfs is not None:
        same = sha256_of_file(file) == entry.lfs.sha256
    else:
        content = file.read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        same = blob.hexdigest() == entry.blob_id
    if not same:
        file.unlink()
        raise CheckpointError(
            f"{entry.path} must arrive as it is in {repo}, but has another checksum.",
            hint="run the command again: the file was removed",
        )


@contextlib.contextmanager
def _translated(hub: ModuleType, repo: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into sentences."""
    errors = hub.errors
    try:
        yield
    except OnmtLlmError:
        raise
    except errors.HFValidationError as error:
        raise ConfigError(f"repo must be OWNER/NAME on the Hub, but is '{repo}'.") from error
    except errors.OfflineModeIsEnabled as error:
        raise CheckpointError(
            f"The Hub must be reachable for {repo}, but HF_HUB_OFFLINE forbids it.", hint="unset HF_HUB_OFFLINE"
        ) from error
    except (errors.HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _answered(repo, error, getattr(_cause(error), "response", None)) from error


def _cause(error: BaseException) -> BaseException:
    """The first error: the client wraps those of its threads."""
    return error if error.__cause__ is None or hasattr(error, "response") else _cause(error.__cause__)


def _answered(repo: str, error: Exception, response: Any) -> CheckpointError:
    """The error for an answer of the Hub that is no success; without an answer, for a connection that failed."""
    if response is None:
        cause = _cause(error)
        said = str(cause).strip().split("\n")[0] or type(cause).__name__
        return CheckpointError(f"The Hub must answer about {repo}, but the connection failed ({said}).", hint=_AGAIN)
    status = response.status_code
    if status in (401, 403):
        return CheckpointError(
            f"The Hub must grant access to {repo}, but refuses it ({status}).",
            hint="check the name; if it is right: hf auth login, with a token that may write where you upload",
        )
    if status == 404:
        return CheckpointError(
            f"{repo} must exist on the Hub, with the revision that is named, but does not (404).",
            hint="check the name and the revision; a private repository needs hf auth login",
        )
    said = str(response.headers.get("X-Error-Message") or "").strip()
    return CheckpointError(
        f"The Hub must accept the request about {repo}, but answers {status}{f' ({said})' if said else ''}.",
        hint=_AGAIN,
    )
