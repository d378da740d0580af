"""Data sets of images: digits, MNIST, CIFAR-10, folders.

In: a specification such as `folder:photos`. Out: a `Dataset` with splits. Read `datasets.py` first.
"""
