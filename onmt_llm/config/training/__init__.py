"""Sections of the options of a training run, one subject per module; `config.train.TrainConfig` puts them together.

In reading order: `start` (new weights or a checkpoint), `run` (length, checkpoints, log, devices), `optimizer`, `loss`
(extra terms, preference optimisation), `regularization`, `performance` (precision, memory, speed), `adapters` (LoRA,
block expansion, quantised base weights), `validation`, `safety` (how checkpoints are saved, time limit, loss spikes)
and `tracking` (W&B, MLflow, profiler). The options of the data are in `config.data`, those of the architecture in
`config.model`. Option names are unique across sections, so a YAML file may list them flat, or under any section.
"""
