"""`HubPath`: files of a dataset of the Hugging Face Hub by their address, and their place in the Hub's cache.

The address is that of `huggingface_hub`: `hf://datasets/OWNER/NAME@REVISION/PATH`. Nothing is downloaded here; the
commands do that before a run (`cli.corpora`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from glob import escape, has_magic
from pathlib import Path

from onmt_llm.errors import ConfigError, DataError
from onmt_llm.optional import require

_ADDRESS = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@(refs/(?:convert|pr)/[\w.-]+|[^/@]+))?(?:/(.*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_IN_CACHE = re.compile(r".*/datasets--(.+?)--(.+)/snapshots/([0-9a-f]{40})/.*")


@dataclass(frozen=True)
class HubPath:
    """An address.

    Attributes:
        repo: `OWNER/NAME`.
        revision: Branch, tag or commit.
        path: File, folder or pattern in the repository; empty = all of it.
    """

    repo: str
    revision: str = "main"
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> HubPath | None:
        """The address in an option; None if it is the path of a file.

        Raises:
            ConfigError: It begins like an address, but is none of a dataset.
        """
        if not text.startswith("hf://"):
            return None
        match = _ADDRESS.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"An address on the Hub must be hf://datasets/OWNER/NAME, followed by @REVISION and /PATH if needed, "
                f"but is '{text}'."
            )
        return cls(match[1], match[2] or "main", match[3] or "")

    def __str__(self) -> str:
        return f"hf://datasets/{self.repo}@{self.revision}{f'/{self.path}' if self.path else ''}"

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which cannot change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def at(self, revision: str) -> HubPath:
        return replace(self, revision=revision)

    def files(self, split: str) -> list[str]:
        """Patterns of the files that a reader may need (`*` also stands for `/`).

        Args:
            split: That of a folder of tables.
        """
        if has_magic(self.path) or Path(self.path).suffix:
            return [self.path]
        folder = f"{self.path.rstrip('/')}/" if self.path else ""
        return [f"{folder}*{split}*{suffix}" for suffix in (".parquet", ".arrow")]

    def local(self) -> str:
        """The path or pattern of the files in the Hub's cache.

        Raises:
            DataError: The cache does not have this revision.
            UnsupportedError: huggingface_hub is not installed.
        """
        cache = Path(require("huggingface_hub.constants", f"{self}", "huggingface_hub").HF_HUB_CACHE)
        folder = cache / f"datasets--{self.repo.replace('/', '--')}"
        commit = self.revision
        if not self.is_pinned and (folder / "refs" / commit).is_file():
            commit = (folder / "refs" / commit).read_text().strip()
        snapshot = folder / "snapshots" / commit
        if not snapshot.is_dir():
            raise DataError(f"{self} must be in the cache of the Hub, but {folder} has no such revision.")
        return f"{escape(str(snapshot)) if has_magic(self.path) else snapshot}/{self.path}"


def source_of(path: Path) -> str | None:
    """The address of the dataset, with its commit, to which a file of the Hub's cache belongs."""
    match = _IN_CACHE.fullmatch(path.as_posix())
    return match and str(HubPath(f"{match[1]}/{match[2]}", match[3]))
