"""Run tasks in worker processes, with results in the order of the tasks.

`pool` has the worker pools and `Job`, the protocol of what they do with a task (`data.bucket` and `data.parallel` have
one each); `worker` is the main function of a worker process; `pickling` restricts what the two exchange; `prefetch`
keeps a thread ahead of the trainer.
"""
