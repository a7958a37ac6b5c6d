"""What is checked before a page is served."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from onmt_llm.chat.launch import USERS_VARIABLE, check_server, read_users
from onmt_llm.errors import ConfigError

pytest.importorskip("gradio", reason="the chat page needs gradio")


def test_a_taken_port_is_refused_before_anything_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}, but cannot"):
            check_server("127.0.0.1", port)


def test_vibe_mode_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_VIBE_MODE", "1")
    with pytest.raises(ConfigError, match="GRADIO_VIBE_MODE"):
        check_server("127.0.0.1", 6006)


def test_users_come_from_a_file_or_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(USERS_VARIABLE, raising=False)
    assert read_users(None) == {}
    file = tmp_path / "users"
    file.write_text("ann:a:b\n\n bob:secret \n")
    assert read_users(str(file)) == {"ann": "a:b", "bob": "secret"}
    monkeypatch.setenv(USERS_VARIABLE, "eve:pw")
    assert read_users(None) == {"eve": "pw"}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("", "is empty"), ("ann:x\nsecret", "line 2 is not"), (":x", "line 1"), ("ann:secret\n\nann:x", "ann in line 3")],
)
def test_a_file_that_is_no_list_of_users_is_refused_and_no_password_is_shown(
    tmp_path: Path, text: str, sentence: str
) -> None:
    file = tmp_path / "users"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        read_users(str(file))
    assert "secret" not in str(error.value)


def test_a_missing_file_of_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'users_file' must be a readable text file"):
        read_users(str(tmp_path / "none"))
