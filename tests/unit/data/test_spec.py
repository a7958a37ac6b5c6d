"""What follows from the options: keys and columns that users can name differently, and seeds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from onmt_llm.config.data import CorpusConfig
from onmt_llm.data.spec import Keys, derived_seed
from onmt_llm.errors import ConfigError


def keys(**options: Any) -> Keys:
    return Keys.of("c", CorpusConfig(path_jsonl="x", **options))


def test_by_default_the_usual_names_are_known() -> None:
    known = keys()
    assert known.named == () and ("prompt", "answer") in known.pairs and ("instruction", "output") in known.pairs
    assert {"conversations", "messages", "text", "input"} <= known.names
    assert (known.roles["human"], known.roles["gpt"], known.roles["user"]) == ("user", "assistant", "user")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"prompt_key": "q", "answer_key": "a"}, ("q", "a")),
        ({"prompt_key": "q"}, ("q", "output")),
        ({"answer_key": "a"}, ("instruction", "a")),
    ],
)
def test_named_keys_come_first(options: dict[str, str], named: tuple[str, str]) -> None:
    assert keys(**options).named == (named,) and set(named) <= keys(**options).names


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ({"role_key": "who"}, ("who", "content")),
        ({"role_key": "from"}, ("from", "value")),
        ({"content_key": "says"}, ("role", "says")),
        ({}, ("from", "value")),
    ],
)
def test_turns_are_spelled_as_the_user_says_or_in_a_known_way(options: dict[str, str], first: tuple[str, str]) -> None:
    turns = keys(**options).turns
    assert turns[0] == first and {("from", "value"), ("role", "content")} <= set(turns)


def test_other_names_of_roles_are_added() -> None:
    roles = keys(roles={"assistant": ["bot", "model"]}).roles
    assert (roles["bot"], roles["model"], roles["gpt"]) == ("assistant", "assistant", "assistant")
    with pytest.raises(ConfigError, match=r"roles of corpus 'c' must be among system, user, .*but one is 'robot'"):
        keys(roles={"robot": ["bot"]})


def test_a_system_key_is_read_where_it_is_named() -> None:
    assert keys(system_key="context").names == {*keys(system_key=None).names, "context"}
    assert keys(messages_key="chat").messages[0] == "chat"


def test_a_seed_depends_on_all_its_parts() -> None:
    seeds = {derived_seed(seed, name, number) for seed in (1, 2) for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 200 and all(0 <= seed < 1 << 31 for seed in seeds)
    assert derived_seed("a", 1) != derived_seed("a1")


def test_a_seed_is_the_same_in_every_process() -> None:
    program = "from onmt_llm.data.spec import derived_seed; print(derived_seed(7, 'corpus', 3))"
    done = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    ]
    assert {int(each.stdout) for each in done} == {derived_seed(7, "corpus", 3)}
