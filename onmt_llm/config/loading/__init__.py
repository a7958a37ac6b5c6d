"""From YAML files and flags to a validated job, and back to text.

`load.load(TrainConfig, argv)` is the entry point. It splits the command line (`flags`), reads YAML files with the line
of every key (`yaml_file`, `user_input`), translates names of other toolkits (`config.compat`), validates each section
with pydantic (`validation`), and reports all problems together, each in one sentence with its place. `help` writes the
pages of `-help`; `render` writes `-print_config`, the option reference and the JSON schemas.
"""
