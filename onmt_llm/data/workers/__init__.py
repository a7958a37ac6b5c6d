"""Prepare buckets in worker processes while the model trains.

`bucket` turns the records of a bucket into batches; `pool` sends buckets to worker processes and keeps their order;
`worker` is the main function of such a process; `pickling` restricts what the two exchange; `prefetch` keeps a thread
ahead of the trainer.
"""
