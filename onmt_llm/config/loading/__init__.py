"""From YAML files and flags to a validated job, and back to text.

`load.load(TrainConfig, argv)` is the entry point. It splits the command line (`flags`), reads YAML files with the line
of every key (`yaml_file`), translates names of other toolkits (`config.compat`), validates each section with pydantic,
and reports all problems together, each in one sentence with its place (`messages`). `corpus_options` handles the
options of transforms inside a corpus, `partial` validates what is valid in an invalid configuration, so that further
checks can run. `help` writes the pages of `-help`; `render` writes `-print_config`, the option reference and the JSON
schemas.
"""
