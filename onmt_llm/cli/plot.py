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
RESULTS = ".csv"
"""Ending of a file that `onmt_llm_eval run` has written."""


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
    from onmt_llm.eval.results_plot import plot_results

    style = PlotStyle(options.against, options.log_scale, options.smooth, options.title)
    results = [run for run in options.runs if run.endswith(RESULTS)]
    if results:
        if others := [run for run in options.runs if run not in results]:
            raise ConfigError(
                f"'runs' must be all results of onmt_llm_eval run (.csv), or none, but {others[0]} is a run.",
                hint="plot them into two files",
            )
        for file, best in plot_results(list(map(Path, results)), Path(options.output), style=style).items():
            for average, (step, value) in best.items():
                print(f"{file}: best {average} of all corpora: ppl {value:.4f} at step {step}")
        print(f"{options.output} written")
        return 0
    plot_runs(open_runs(options.runs), Path(options.output), metrics=options.figures, best=options.best, style=style)
    print(f"{options.output} written")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
