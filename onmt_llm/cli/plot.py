"""`onmt_llm_plot RUN...`: plot the curves of training runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from onmt_llm.cli.outputs import Paths, output_option
from onmt_llm.cli.run import CheckedJob, run_job
from onmt_llm.config.loading.load import Loaded
from onmt_llm.config.plot import CurvesConfig
from onmt_llm.errors import ConfigError

USAGE = "onmt_llm_plot RUN... [-output FILE.png] [-against tokens|steps|hours] [-log_scale y] [-figures xent lr]"

ENDINGS = ("", "_metrics.jsonl", "_results.jsonl")
"""Endings of the files of a run, after its name."""


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else list(argv)
    # the runs may come first, without the flag -runs
    runs = list(takewhile(lambda word: not word.startswith("-"), words))
    return run_job(CheckedJob("onmt_llm_plot", _paths), _plot, ["-runs", *words] if runs else words)


def _paths(loaded: Loaded[Any]) -> Paths:
    read = [("'runs'", f"{run}{end}", ("runs",)) for run in loaded.job.curves.runs for end in ENDINGS]
    return Paths([each for each in read if Path(each[1]).is_file()], output_option(loaded, "curves", "output"))


def _plot(loaded: Loaded[Any]) -> int:
    options: CurvesConfig = loaded.job.curves
    if not options.runs:
        raise ConfigError("At least one run must be named, but none is.", hint=USAGE)
    from onmt_llm.eval.curves import open_runs
    from onmt_llm.eval.plotting import PlotStyle, plot_runs

    style = PlotStyle(options.against, options.log_scale, options.smooth, options.title)
    plot_runs(open_runs(options.runs), Path(options.output), metrics=options.figures, best=options.best, style=style)
    print(f"{options.output} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
