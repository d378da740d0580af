"""The folder that a user gets: plan, ONNX file, packed weights, report.

In: `Subject`, a plan and a demand. Out: checked files. Read `handover.py` first.
"""
