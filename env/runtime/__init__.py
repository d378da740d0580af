"""ONNX Runtime: export, graphs of single layers, timing, energy counters, the program for other machines.

In: torch modules or chains of operations. Out: ONNX files, their outputs, milliseconds and millijoules. Read
`runtime.py` first.
"""
