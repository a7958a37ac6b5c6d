"""The command line: one module for each command.

`jobs` has the schema of each command's configuration; `run` is the frame of every command: it loads the configuration,
finds all problems first (`checks`, `inputs`, `outputs`), starts the log, calls the work, and turns errors into exit
codes. A command imports torch only when its work starts, so a wrong configuration is reported within a second.
`inference` is what the commands that run a model share; `lines` reads and writes the files of `onmt_llm_translate`.
"""
