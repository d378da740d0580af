"""Studies behind the pages under `experiments/results`; each is a command.

In: networks and seeds. Out: a page of results. Read `score_study.py` for the pattern.
"""
