"""Serving a page: address, password, look; shared by all pages of the package."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onmt_llm.errors import ConfigError
from onmt_llm.log import logger
from onmt_llm.optional import require

LOOPBACK = ("127.0.0.1", "localhost", "::1")
USERS_VARIABLE = "ONMT_LLM_CHAT_USERS"
"""Environment variable with the lines of a `users_file`."""


def import_gradio() -> Any:
    """Gradio, without telemetry and without requests to the hub.

    Raises:
        UnsupportedError: It is not installed.
    """
    # gradio reads these variables when it is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return require("gradio", "the chat page")


def check_server(server_name: str, server_port: int, *, has_password: bool = False) -> None:
    """Check, before a model is loaded, that `launch` can serve a page.

    Raises:
        ConfigError: The address or port is not available, or the environment makes Gradio unsafe.
        UnsupportedError: Gradio is not installed.
    """
    import_gradio()
    if os.environ.get("GRADIO_VIBE_MODE"):
        raise ConfigError("GRADIO_VIBE_MODE must not be set: it lets every visitor run code on this machine.")
    family = socket.AF_INET6 if ":" in server_name else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((server_name, server_port))
    except OSError as error:
        raise ConfigError(
            f"The page must be able to listen on {server_name}, port {server_port}, but cannot: "
            f"{error.strerror or error}.",
            hint="choose another -server_port",
        ) from error
    if server_name not in LOOPBACK and not has_password:
        logger.warning("The chat listens on %s: everyone who can reach this machine can use it.", server_name)


def read_users(file: str | None) -> dict[str, str]:
    """Names and passwords of the visitors who may use a page; empty = everyone may.

    Args:
        file: A line `name:password` for each; None = the lines are in the environment variable `ONMT_LLM_CHAT_USERS`.

    Raises:
        ConfigError: The file cannot be read, or a line is none; the message shows no password.
    """
    if file is None:
        text, where = os.environ.get(USERS_VARIABLE, ""), USERS_VARIABLE
    else:
        try:
            text, where = Path(file).read_text("utf-8"), file
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"'users_file' must be a readable text file, but {file} is not: {error}.") from error
    users: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            name, colon, password = line.strip().partition(":")
            if not (name and colon and password):
                raise ConfigError(f"Each line of {where} must be name:password, but line {number} is not.")
            if name in users:
                raise ConfigError(f"Each name must be once in {where}, but {name} in line {number} is there before.")
            users[name] = password
    if file is not None and not users:
        raise ConfigError(f"'users_file' must have a line name:password, but {file} is empty.")
    return users


def launch(
    app: Any, *, server_name: str = "127.0.0.1", server_port: int = 6006, users: Mapping[str, str] | None = None
) -> None:
    """Serve a page until the process is interrupted, without a public link and without external requests.

    Args:
        app: A `gradio.Blocks` with its queue.
        server_name: Address to listen on.
        server_port: Port to listen on.
        users: Password of each visitor's name, see `read_users`; None or empty = no password is asked for.
    """
    gr = import_gradio()
    fonts = ["ui-sans-serif", "system-ui", "Noto Sans", "sans-serif"]
    theme = gr.themes.Default(
        primary_hue="indigo", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "Consolas", "monospace"]
    ).set(
        # white on these has the contrast that WCAG 2 wants
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_cancel_background_fill="*neutral_700",
        button_cancel_background_fill_hover="*neutral_800",
        button_cancel_text_color="white",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
    )
    logger.info("The chat is at http://%s:%d (Ctrl+C stops it).", server_name, server_port)
    app.launch(
        server_name=server_name,
        server_port=server_port,
        auth=list(users.items()) if users else None,
        share=False,
        ssr_mode=False,
        quiet=True,
        footer_links=[],
        max_file_size=0,
        enable_monitoring=False,
        theme=theme,
        css=Path(__file__).with_name("page.css").read_text("utf-8"),
    )
