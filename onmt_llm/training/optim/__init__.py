"""Optimisation: optimisers, learning-rate schedules, precision, averages of the weights.

`registry` is the table of optimisers, `build` makes parameter groups and clips gradients, `schedule` gives the
learning rate of a step, `precision` the number formats and the loss scale. Special cases: `kahan` (AdamW over bf16
weights), `in_backward` (updates inside the backward pass), `ema` (running averages of the weights).
"""
