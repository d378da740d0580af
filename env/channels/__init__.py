"""Which channels of which tensors belong together: labels that one forward pass carries from operator to operator.

A network and a way to run it flow in, for each layer and bare parameter the labels of its channels flow out; read
`tracing.py` first.
"""
