"""Training of a compressed network within its zeros and number formats.

In: a plan's network and training samples. Out: the same network, more accurate. Read `recovery.py` first.
"""
