"""Networks of other people: how much of each can be compressed, and whether it survives.

In: names of architectures of torchvision, timm and transformers, and some of our own. Out: a row for each. Read
`breadth_study.py` first.
"""
