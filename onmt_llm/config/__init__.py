"""Options: their definition, their documentation, and how YAML files and flags become a validated job.

A job (`train.TrainConfig`, `translate.TranslateConfig` ...; one module per command) is a `Section` of sections, whose
fields are the options (`section`, `numbers`). The string below a field is its documentation: `-help`, the option
reference and the JSON schemas are generated from it. Option names are unique within a job, so a YAML file may list them
flat, as for OpenNMT-py. `loading` reads files and flags, `compat` translates names of other toolkits.

Sections that several jobs share: `data`, `generate`, `integrity`; those of training are in `train` and `learning`.
`model` is the architecture and `checkpoint` the `config.yaml` of a checkpoint; `task` completes the architecture of a
new model. Functions outside take values or single sections, not whole jobs.
"""
