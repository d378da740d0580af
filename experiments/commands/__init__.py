"""What the commands share: options, studying a network, listings, messages about mistakes.

In: the command line. Out: console and files. Read `study.py` first.
"""
