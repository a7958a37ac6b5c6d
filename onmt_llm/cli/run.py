"""What every command does around its work: arguments in, exit code out, one clear sentence for every error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from onmt_llm.errors import OnmtLlmError

INTERRUPTED = 130
"""The shell's code for a command that Ctrl-C ended."""


def run(work: Callable[[Sequence[str]], int], argv: Sequence[str] | None) -> int:
    """Run a command's work and turn an error with a message for the user into that message and its exit code.

    Args:
        work: Takes the arguments, returns the exit code.
        argv: Arguments without the program's name; None = the process's own.
    """
    try:
        return work(sys.argv[1:] if argv is None else argv)
    except OnmtLlmError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
