"""What is kept on disk and in memory: the cache's folders, SQLite files, the ceiling of kept outputs.

In: keys and values. Out: the same values in a later run. Read `result_store.py` first.
"""
