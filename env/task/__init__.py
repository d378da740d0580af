"""What a network is for: its data, how it is run on a batch, and how its outputs are judged.

In: a user's iterables and functions. Out: `Samples` that know how to score a network. Read `task.py` first: `Task` is
what a user gives; `judge.py` is what follows from it for one network; `samples.py` runs networks over batches.
"""
