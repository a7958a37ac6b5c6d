"""`onmt_llm_hub upload | download`: share models by the Hugging Face Hub; download datasets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from onmt_llm.cli.inputs import missing_options
from onmt_llm.cli.outputs import Paths, output_option
from onmt_llm.cli.run import required, run_action
from onmt_llm.config.hub import HubOptions
from onmt_llm.config.loading.load import Loaded
from onmt_llm.errors import CheckpointError, Problem

USAGE = "onmt_llm_hub upload -folder MODEL -repo OWNER/NAME | download -repo OWNER/NAME -output DIRECTORY"


def main(argv: Sequence[str] | None = None) -> int:
    return run_action("onmt_llm_hub", argv, ACTIONS, USAGE, paths=_paths, checks=_problems, readers=_READERS)


def _paths(_: str, loaded: Loaded[Any]) -> Paths:
    folder = loaded.job.hub.folder
    reads = [("'folder'", folder, ("folder",))] if folder else []
    return Paths(reads, output_option(loaded, "hub", "output", is_folder=True))


def _problems(action: str, loaded: Loaded[Any]) -> Iterator[Problem]:
    yield from missing_options(loaded, "hub", _NEEDS.get(action, ()), USAGE)
    folder = loaded.job.hub.folder
    if action == "upload" and folder and not Path(folder).exists():
        sentence = f"'folder' must be a model that exists, but '{folder}' is not."
        yield Problem(sentence, loaded.where("folder"), kind=CheckpointError)


_NEEDS = {"upload": ("folder", "repo"), "download": ("repo", "output")}
_READERS = {
    **dict.fromkeys(("folder", "private", "commit_message", "train_state"), ("upload",)),
    **dict.fromkeys(("dataset", "output", "force"), ("download",)),
}


def _upload(loaded: Loaded[Any]) -> int:
    options: HubOptions = loaded.job.hub
    folder, repo = (required(loaded, "hub", name, USAGE) for name in ("folder", "repo"))
    from onmt_llm.checkpoint.hub import upload

    address = upload(
        folder,
        repo,
        private=options.private,
        revision=options.revision,
        message=options.commit_message,
        train_state=options.train_state,
    )
    print(f"{folder} uploaded: {address}")
    return 0


def _download(loaded: Loaded[Any]) -> int:
    options: HubOptions = loaded.job.hub
    repo, output = (required(loaded, "hub", name, USAGE) for name in ("repo", "output"))
    from onmt_llm.checkpoint.hub import download, next_command

    path = download(repo, output, revision=options.revision, overwrite=options.force, dataset=options.dataset)
    use = f"path_table: {path} in a corpus" if options.dataset else next_command(path)
    print(f"{repo} downloaded and verified: {path}\nnext: {use}")
    return 0


ACTIONS = {"upload": _upload, "download": _download}


if __name__ == "__main__":
    raise SystemExit(main())
