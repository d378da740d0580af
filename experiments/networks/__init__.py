"""Networks of the zoo and users' own: architectures, training on the spot, loading.

In: a name or a factory. Out: a trained `nn.Module`. Read `zoo.py` first.
"""
