"""Jinja chat templates of other models, in a sandbox.

A template file is untrusted code. `syntax` rewrites it so that everything that it does is an operation (`operations`)
that charges a budget (`costs`); `library` has the functions, filters and tests that it can use; `sandbox` compiles and
runs it; `template` splits the rendered text into segments.
"""
