"""Corpus files: expand patterns, open files, and check kind, encoding and compression before a run."""

from __future__ import annotations

import io
import stat
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.readers.compressed import FORMATS, Decompressed
from onmt_llm.data.readers.dataset_folder import dataset_files
from onmt_llm.data.readers.hub_path import HubPath
from onmt_llm.errors import DataError

_BOM = b"\xef\xbb\xbf"
_HEAD = 1 << 16
_BUFFER = 1 << 17

_OTHER_KINDS = (
    (b"\xff\xfe", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 converts it"),
    (b"\xfe\xff", "UTF-16 text", "iconv -f UTF-16 -t UTF-8 converts it"),
    (
        b"BZh",
        "bzip2-compressed",
        "decompress it with bunzip2, and compress it with gzip, zstd or xz if it must be small",
    ),
    (b"PK\x03\x04", "a zip archive", "unzip it and name the files in it"),
    (b"PAR1", "a Parquet table", "path_table reads tables"),
    (b"ARROW1", "an Arrow table", "path_table reads tables"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull fetches it"),
)
_TAR = slice(257, 262)


def expand(value: str | Sequence[str]) -> list[Path]:
    """The files that an option names: one or more paths, each of which may be a pattern (`*`, `?`, `[...]`, `**`).

    Files that match a pattern are sorted by name. A path that exists is never treated as a pattern. The files of an
    address on the Hub (`hf://`) are those in the Hub's cache.

    Raises:
        ConfigError: What begins with `hf://` is no address.
        DataError: A pattern matches no file, or the cache of the Hub lacks an address.
    """
    found: list[Path] = []
    for text in [value] if isinstance(value, str) else value:
        if address := HubPath.parse(text):
            text = address.local()
        if not has_magic(text) or Path(text).exists():
            found.append(Path(text))
            continue
        matched = sorted(Path(name) for name in glob(text, recursive=True) if Path(name).is_file())
        if not matched:
            raise DataError(f"A pattern of files must match at least one, but '{text}' matches none.")
        found += matched
    return found


def files_of(corpus: CorpusConfig, key: str) -> list[Path]:
    """The files that a path option of a corpus names, reduced to its part of them (`split`).

    Raises:
        DataError: A pattern matches no file, or the part has none.
    """
    paths = expand(getattr(corpus, key) or ())
    if key == "path_table" and not corpus.reader:
        split = corpus.dataset_split
        paths = [file for path in paths for file in (dataset_files(path, split) if path.is_dir() else [path])]
    if corpus.split is None or not paths:
        return paths
    start, end = corpus.split
    chosen = [path for number, path in enumerate(paths) if start <= number / len(paths) < end]
    if not chosen:
        raise DataError(
            f"split: [{start:g}, {end:g}] of {key} must leave at least one file, but leaves none of {len(paths)}."
        )
    return chosen


def is_compressed(path: Path) -> bool:
    return path.suffix in FORMATS


def bare_suffix(path: Path) -> str:
    """The suffix without that of the compression: `.csv` for `x.csv.gz`."""
    return path.with_suffix("").suffix if is_compressed(path) else path.suffix


def open_bytes(path: Path) -> io.BufferedReader:
    """Open a file for reading, with decompression if its name ends in .gz, .zst or .xz.

    Raises:
        DataError: It cannot be opened; on reading, a compressed file is damaged.
    """
    file = open_raw(path)
    return io.BufferedReader(Decompressed(path, file) if is_compressed(path) else file, _BUFFER)


def bytes_passed(file: io.BufferedReader) -> int:
    """Bytes on disk read so far from a file that `open_bytes` opened."""
    raw = file.raw
    return raw.passed if isinstance(raw, Decompressed) else raw.tell()


def open_raw(path: Path) -> io.FileIO:
    """Open a file without decompression or buffering."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise DataError(f"Every file of a corpus must be readable, but {path} is not ({error.strerror}).") from error


def check_file(corpus: str, path: Path, *, binary: bool = False) -> None:
    """Refuse a path that is not a file, or whose content does not match its name.

    Args:
        corpus: Name of the corpus, for messages.
        path: The file.
        binary: Whether the file is a binary table; otherwise it must be text.

    Raises:
        DataError: The file is missing or unreadable, its compression does not match its name, or it is not text.
    """
    if not path.is_file():
        raise DataError(
            f"Every path of corpus '{corpus}' must be a file, but {path} is {_what_is(path)}.",
            hint=f"{path / '*'} names the files in it" if path.is_dir() else None,
        )
    if binary:
        return
    _check_compression(corpus, path)
    with open_bytes(path) as file:
        head = file.read(_HEAD)
    if is_compressed(path) and any(format_.begins(head) for format_ in FORMATS.values()):
        raise DataError(f"Corpus '{corpus}' must be compressed once, but what {path} holds is compressed again.")
    _check_text(corpus, path, head)


def is_empty(path: Path) -> bool:
    """Whether a text file is empty, apart from a byte-order mark."""
    with open_bytes(path) as file:
        skip_mark(file)
        return not file.read(1)


def skip_mark(file: io.BufferedReader) -> int:
    """Skip the byte-order mark of a text file; returns its length, 0 if there is none."""
    return len(file.read(len(_BOM))) if file.peek(len(_BOM)).startswith(_BOM) else 0


def _check_compression(corpus: str, path: Path) -> None:
    with open_raw(path) as file:
        head = file.read(8) or b""
    own = FORMATS.get(path.suffix)
    if own is not None and not own.begins(head):
        what = "is not" if head else "is empty"
        raise DataError(f"Corpus '{corpus}' must have a {own.name} file where its name says so, but {path} {what}.")
    if own is None:
        for suffix, format_ in FORMATS.items():
            if format_.begins(head):
                raise DataError(
                    f"Corpus '{corpus}' must be plain text, but {path} is {format_.name}-compressed.",
                    hint=f"rename it to {path.name}{suffix}",
                )


def _check_text(corpus: str, path: Path, head: bytes) -> None:
    for magic, kind, hint in _OTHER_KINDS:
        if head.startswith(magic):
            raise DataError(f"Corpus '{corpus}' must be text in UTF-8, but {path} is {kind}.", hint=hint)
    if head[_TAR] == b"ustar":
        raise DataError(f"Corpus '{corpus}' must be text, but {path} is a tar archive.", hint="tar -xf unpacks it")
    if _is_utf16(head[:1024]):
        raise DataError(
            f"Corpus '{corpus}' must be text in UTF-8, but every other byte of {path} is zero, as in UTF-16 text.",
            hint="iconv -f UTF-16LE -t UTF-8 converts it",
        )
    if b"\n" not in head and b"\r" in head.rstrip(b"\r"):
        raise DataError(
            f"Lines of corpus '{corpus}' must end in a line feed, but those of {path} end in a carriage return only.",
            hint="tr '\\r' '\\n' converts it",
        )


def _is_utf16(start: bytes) -> bool:
    """Whether many bytes are zero, nearly all of them at even or nearly all at odd positions."""
    zeros = sorted((start[::2].count(0), start[1::2].count(0)))
    return len(start) > 1 and sum(zeros) * 4 > len(start) and zeros[0] * 8 < zeros[1]


def _what_is(path: Path) -> str:
    if path.is_dir():
        return "a directory"
    try:
        mode = path.stat().st_mode
    except OSError:
        return "a link that leads nowhere" if path.is_symlink() else "missing"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or a socket"
