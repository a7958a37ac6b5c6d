"""The log: where it goes, what other ranks say, colours, and messages that are said once."""

from __future__ import annotations

import io
import logging
import sys
from pathlib import Path

import pytest

from onmt_llm import log


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_messages_go_to_stderr_and_to_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log.setup_logging(log_file=str(tmp_path / "run.log"))
    log.logger.info("épreuve")
    log.logger.debug("not shown")
    (line,) = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert line.endswith("INFO] épreuve") and capsys.readouterr().err == line + "\n"


def test_a_second_setup_replaces_the_first(tmp_path: Path) -> None:
    log.setup_logging(log_file=str(tmp_path / "first.log"))
    log.setup_logging(log_file=str(tmp_path / "second.log"))
    log.logger.info("once")
    assert (tmp_path / "first.log").read_text() == "" and "once" in (tmp_path / "second.log").read_text()


def test_other_ranks_log_warnings_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    log.setup_logging()
    log.logger.info("from all")
    log.logger.warning("from one")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING] from one")


@pytest.mark.parametrize(("no_color", "shown"), [(None, "\x1b[1;32mx\x1b[0m"), ("1", "⟦x⟧")])
def test_highlights_are_coloured_in_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, no_color: str | None, shown: str
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    log.setup_logging()
    log.logger.info(f"{log.OPEN}x{log.CLOSE}")
    assert terminal.getvalue().rstrip("\n").endswith(shown)


def test_a_note_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="onmt_llm"):
        for message in ("one", "two", "one"):
            log.log_once(message)
    assert [record.message for record in caplog.records] == ["one", "two"]
