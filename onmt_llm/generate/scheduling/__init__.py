"""Answers to many clients at once: a bounded queue, and a thread that runs the engine.

`Scheduler.submit` takes a `Request` and returns a `Ticket`, from which the answer is read piece by piece, and with
which it is cancelled. How the engine is driven is up to a `Worker`: one request at a time, or several together.
"""
