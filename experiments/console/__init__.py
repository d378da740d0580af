"""The command line before torch is imported: arguments, names, and what is said about mistakes.

In: the words of a command line. Out: arguments for the parser, or one message. Read `arguments.py` first.
"""
