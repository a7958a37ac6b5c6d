"""`onmt_llm completion bash | zsh | fish`: print the script with which a shell completes our commands.

A script is a table of words, and a function that looks them up. The keys of the table:

    commands       the commands, after `onmt_llm`
    train          the first words of a command that has several actions
    train -        its flags
    train -optim   the values of a flag; without an entry, a shell completes the names of files
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module

from onmt_llm.cli.jobs import JOBS
from onmt_llm.cli.run import run
from onmt_llm.commands import COMMANDS, SUBCOMMANDS, short_name
from onmt_llm.config.loading.flags import FLAGS
from onmt_llm.config.loading.help import ALL, summary
from onmt_llm.config.section import Option, options_of, section_docs
from onmt_llm.data.transforms.transform import TRANSFORMS
from onmt_llm.errors import ConfigError

Candidates = Mapping[str, str]
"""Words that can be completed, and what each means in a phrase."""


def main(argv: Sequence[str] | None = None) -> int:
    return run(_print, argv)


def _print(words: Sequence[str]) -> int:
    if len(words) != 1 or words[0] not in SHELLS:
        raise ConfigError(
            f"The shell must be one of {', '.join(SHELLS)}, but is '{' '.join(words)}'.",
            hint="source <(onmt_llm completion bash)",
        )
    print(SHELLS[words[0]](table()))
    return 0


def table() -> dict[str, Candidates]:
    """The words to complete, by key (see above)."""
    commands = {short_name(name): entry.phrase for name, entry in COMMANDS.items()}
    found: dict[str, Candidates] = {"commands": commands | {name: each.phrase for name, each in SUBCOMMANDS.items()}}
    found["completion"] = dict.fromkeys(SHELLS, "")
    for name in COMMANDS:
        found.update(_words_of(name))
    return found


def _words_of(name: str) -> Iterator[tuple[str, Candidates]]:
    """The keys and words of one command."""
    command, short = COMMANDS[name], short_name(name)
    job = JOBS[next(other for other, entry in COMMANDS.items() if entry is command)]
    module = import_module(f"onmt_llm.cli.{command.module}")
    options, sections = options_of(job.section, job.extra()), section_docs(job.section, job.extra())
    yield short, dict.fromkeys(getattr(module, "ACTIONS", ()), "")
    own = {flag: text for flag, _, text in FLAGS} | dict(getattr(module, "SWITCHES", {}))
    flags = own | {option.name: summary(option.doc) for option in options.values()}
    yield f"{short} -", flags
    topics = {ALL: "all options"} | {section: summary(text) for section, text in sections.items()}
    yield f"{short} -help", topics | flags
    for option in options.values():
        yield f"{short} -{option.name}", dict.fromkeys(_values(option), "")


def _values(option: Option) -> Iterable[str]:
    if option.name == "transforms":
        return TRANSFORMS.names()
    if option.is_bool:
        return ("true", "false")
    return [str(value) for value in option.choices if value not in ("", None)]


def _cases(words: Mapping[str, Candidates], show: Callable[[Candidates], str], case: str) -> str:
    """The table in the syntax of a shell: a case for the keys that have the same words."""
    keys: dict[str, list[str]] = defaultdict(list)
    for key, each in words.items():
        if each:
            keys[show(each)].append(f"'{key}'")
    return "\n".join(case.format("|".join(same), " ".join(same), words=shown) for shown, same in keys.items())


def _with_summaries(separator: str) -> Callable[[Candidates], str]:
    """Shows each word in single quotes, with its summary."""

    def show(words: Candidates) -> str:
        plain = {word: re.sub(r"['\\:]", "", text) for word, text in words.items()}
        return " ".join(f"'{word}{separator}{text}'" if text else f"'{word}'" for word, text in plain.items())

    return show


def _bash(words: Mapping[str, Candidates]) -> str:
    return _BASH.replace("CASES", _cases(words, " ".join, "    {0}) echo '{words}' ;;"))


def _zsh(words: Mapping[str, Candidates]) -> str:
    return _ZSH.replace("CASES", _cases(words, _with_summaries(":"), "    {0}) reply=({words}) ;;"))


def _fish(words: Mapping[str, Candidates]) -> str:
    return _FISH.replace("CASES", _cases(words, _with_summaries("\t"), "    case {1}\n      printf '%s\\n' {words}"))


SHELLS = {"bash": _bash, "zsh": _zsh, "fish": _fish}

_NAMES = " ".join(["onmt_llm", *COMMANDS])
_BASH = r"""# Completes the commands of onmt_llm in bash; written by: onmt_llm completion bash
_onmt_llm_words() {
  case $1 in
CASES
  esac
}

_onmt_llm() {
  local command=${COMP_WORDS[0]##*/} current=${COMP_WORDS[COMP_CWORD]} first=1 key='' dashes='' i
  [[ $current == '=' ]] && current=''
  if [[ $command == onmt_llm ]]; then
    command=${COMP_WORDS[1]} first=2
    if ((COMP_CWORD == 1)) || [[ $command == help && $COMP_CWORD == 2 ]]; then
      key=commands
    elif [[ $command == help ]]; then
      command=${COMP_WORDS[2]} key=help
    fi
  fi
  command=${command//-/_} command=${command#onmt_llm_} command=${command%_model}
  if [[ $key == help ]]; then
    key="$command -help"
  elif [[ -z $key && $current == -* ]]; then
    key="$command -" dashes=${current%%[!-]*}
  elif [[ -z $key ]]; then
    ((COMP_CWORD == first)) && key=$command
    for ((i = COMP_CWORD - 1; i >= first; i--)); do
      if [[ ${COMP_WORDS[i]} == -*[a-z]* ]]; then
        key="$command -${COMP_WORDS[i]##*-}"
        break
      fi
    done
  fi
  COMPREPLY=($(compgen -P "$dashes" -W "$(_onmt_llm_words "$key")" -- "${current#"$dashes"}"))
}

complete -o default -F _onmt_llm NAMES""".replace("NAMES", _NAMES)

_ZSH = r"""# Completes the commands of onmt_llm in zsh; written by: onmt_llm completion zsh
_onmt_llm_words() {
  reply=()
  case $1 in
CASES
  esac
}

_onmt_llm() {
  local command=${words[1]:t} first=2 key='' dashes='' i
  local -a reply
  if [[ $command == onmt_llm ]]; then
    command=$words[2] first=3
    if ((CURRENT == 2)) || [[ $command == help && $CURRENT == 3 ]]; then
      key=commands
    elif [[ $command == help ]]; then
      command=$words[3] key=help
    fi
  fi
  command=${command//-/_} command=${command#onmt_llm_} command=${command%_model}
  if [[ $key == help ]]; then
    key="$command -help"
  elif [[ -z $key && $PREFIX == -* ]]; then
    key="$command -" dashes=${(M)PREFIX##-##}
  elif [[ -z $key ]]; then
    ((CURRENT == first)) && key=$command
    for ((i = CURRENT - 1; i >= first; i--)); do
      if [[ $words[i] == -*[a-z]* ]]; then
        key="$command -${words[i]##-##}"
        break
      fi
    done
  fi
  _onmt_llm_words $key
  if (($#reply)); then
    reply=($dashes${^reply})
    _describe -t words word reply
  else
    _files
  fi
}

compdef _onmt_llm NAMES""".replace("NAMES", _NAMES)

_FISH = r"""# Completes the commands of onmt_llm in fish; written by: onmt_llm completion fish
function __onmt_llm_words
  switch $argv[1]
CASES
  end
end

function __onmt_llm_complete
  set -l words (commandline -opc)
  set -l current (commandline -ct)
  set -l command (path basename $words[1])
  set -e words[1]
  if test $command = onmt_llm
    if test (count $words) -eq 0; or test "$words" = help
      __onmt_llm_words commands
      return
    end
    set command $words[1]
    set -e words[1]
    if test $command = help
      set command $words[1]
      set words -help
    end
  end
  set command (string replace -a - _ -- $command | string replace -r '^onmt_llm_|_model$' '')
  if string match -q -- '-*' $current
    __onmt_llm_words "$command -" | string replace -r -- '^' (string match -r -- '^-+' $current)
    return
  end
  set -l flags (string match -r -- '^-+[a-z].*' $words)
  if set -q flags[1]
    __onmt_llm_words "$command -"(string replace -r '^-+' '' -- $flags[-1])
  else if test (count $words) -eq 0
    __onmt_llm_words $command
  end
end

for command in NAMES
  complete -c $command -n 'count (__onmt_llm_complete)' -f -a '(__onmt_llm_complete)'
end""".replace("NAMES", _NAMES)


if __name__ == "__main__":
    raise SystemExit(main())
