"""Where work runs, and how far it is: tasks in this process or in several, one progress bar for all that takes long.

In: tasks, small values that can be pickled. Out: their results, in order, kept where a store is given. Read
`executor.py` first.
"""
