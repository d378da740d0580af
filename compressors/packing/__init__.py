"""The file of packed weights: entropy-coded symbols in a safetensors container.

In: a compressed network. Out: `weights.safetensors`, which loads back without running code. Read `packed_file.py`
first.
"""
