"""HTML pages about data: self-contained files, with all data escaped."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from onmt_llm.data.inspection.diff import compare, compare_texts
from onmt_llm.data.inspection.histograms import histogram
from onmt_llm.data.inspection.report import PERCENTILES, CorpusReport, Mixture, lengths_at
from onmt_llm.data.inspection.trace import Trace, Traces, TraceSpan

_MOSTLY = 0.5
_UNKNOWN = 0.01


def report_page(reports: Sequence[CorpusReport], shares: Mixture, *, title: str, about: str) -> str:
    """The report as a page.

    Args:
        reports: Report of each corpus.
        shares: Shares of the corpora in the mixture.
        title: Title of the page.
        about: One sentence on the data read.
    """
    filters: dict[str, Callable[..., Any]] = {"plot": histogram, "warnings": warnings, "at": lengths_at}
    return render_page(
        "report.html",
        filters,
        title=title,
        about=about,
        reports=reports,
        mixture=shares,
        percentiles=list(PERCENTILES),
    )


def warnings(report: CorpusReport) -> list[str]:
    """Problems to look at before a long training run."""
    counts = report.counts
    found = []
    if not counts.kept:
        found.append("Nothing is left of this corpus.")
    elif counts.kept < _MOSTLY * counts.read:
        found.append("Most examples are dropped.")
    if counts.unknown > _UNKNOWN * max(counts.tokens, 1):
        found.append("More than 1% of the tokens are unknown: is this the tokeniser that the vocabulary belongs to?")
    for what, number in counts.suspect.most_common():
        found.append(f"{number:,} records have a {what.replace('_', ' ')} that no file begins with.")
    if counts.truncated > _MOSTLY * max(counts.kept, 1):
        found.append("Most examples are truncated.")
    return found


def samples_page(collected: Sequence[Traces], *, title: str, about: str) -> str:
    """A page of examples with every step of their transformation.

    Args:
        collected: Traces of each corpus.
        title: Title of the page.
        about: One sentence on the data shown.
    """
    outcomes = Counter(trace.outcome for each in collected for trace in each.found)
    shown = [{"corpus": each.corpus, "found": [_shown(trace) for trace in each.found]} for each in collected]
    return render_page(
        "samples.html", {}, title=title, about=about, collected=shown, outcomes=dict(outcomes.most_common())
    )


def _shown(trace: Trace) -> dict[str, Any]:
    """A trace with the changes between stages."""
    before: Sequence[Sequence[TraceSpan]] = ()
    stages = []
    for stage in trace.stages:
        stages.append(
            {
                "name": stage.name,
                "dropped": not stage.sides,
                "changed": stage.sides != before and bool(stage.sides),
                "sides": [
                    _side(before[place] if place < len(before) else (), side) for place, side in enumerate(stage.sides)
                ],
            }
        )
        before = stage.sides
    part = f", example {trace.part + 1} of {trace.parts}" if trace.parts > 1 else ""
    return {**trace.__dict__, "stages": stages, "where": f"{trace.path}:{trace.line}{part}"}


def _side(before: Sequence[TraceSpan], after: Sequence[TraceSpan]) -> dict[str, Any]:
    """Tokens or stretches of text, marked as changed or, without changes, as trained."""
    if _is_tokens(after):
        return {"tokens": _tokens(before if _is_tokens(before) else after, after)}
    text, earlier = (_text(spans) for spans in (after, before))
    if before and text != earlier:
        return {"tokens": None, "stretches": compare_texts(earlier, text)}
    shown = [
        (("control " if span.text is None else "") + ("on" if span.trained else ""), _text([span])) for span in after
    ]
    return {"tokens": None, "stretches": shown}


def _is_tokens(spans: Sequence[TraceSpan]) -> bool:
    return all(span.text is None for span in spans)


def _text(spans: Sequence[TraceSpan]) -> str:
    """Text, including the control tokens of a template."""
    return "".join("".join(span.tokens or ()) if span.text is None else span.text for span in spans)


def _tokens(before: Sequence[TraceSpan], after: Sequence[TraceSpan]) -> list[tuple[str, str]]:
    """Tokens with their CSS class, including removed ones."""
    old, new = ([token for span in spans for token in span.tokens or ()] for spans in (before, after))
    trained = iter([span.trained for span in after for _ in span.tokens or ()])
    shown: list[tuple[str, str]] = []
    for kind, words in compare(old, new):
        plain = [(word, "gone" if kind == "gone" else "on" if next(trained) else "") for word in words]
        shown += [(word, f"{kind} {shade}" if kind == "added" else shade) for word, shade in plain]
    return shown


def render_page(template: str, filters: Mapping[str, Callable[..., Any]], **values: Any) -> str:
    """A page from one of the templates in `page_templates`; only scripts with its nonce run."""
    environment = Environment(
        loader=PackageLoader("onmt_llm.data.inspection", "page_templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    # only scripts with this nonce run, whatever a corpus contains
    return environment.get_template(template).render(nonce=secrets.token_hex(8), **values)
