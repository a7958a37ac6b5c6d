"""Look at data before training: audit, samples, traces and reports.

`audit` warns about the first bucket of a run; `samples` writes `n_sample` files; `trace` and `report` compute what
`onmt_llm_data sample` and `report` show; `html`, `histograms` and `diff` render it.
"""
