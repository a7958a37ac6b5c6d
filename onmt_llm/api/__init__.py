"""The package as Python functions: what the commands do, with their options as keywords.

Every function loads the same job with the same checks as its command (`cli`), so names, defaults and messages are those
of the option reference. `options.py` turns a YAML file, a dict and keywords into a loaded job; `jobs.py` has a function
for each command that writes something; `engine.py` answers texts with a model.
"""
