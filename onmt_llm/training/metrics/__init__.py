"""Metrics of a run: what is measured, and where it is written.

`totals` adds up the sums of the losses and computes metrics from them; `reporter` collects them and writes them to
the console and to the sinks (`sinks`: a JSONL file, TensorBoard, W&B, MLflow); `build` creates the reporter of a run.
Beside these: `mfu` (speed and memory of the hardware), `profiler`, `loss_spikes` and `stopwatch`.
"""
