"""The folder that a user gets: plan, ONNX file, packed weights, report.

In: `Subject`, a plan and a demand. Out: checked files. Read `handover.py` first: `run_folder.py` keeps other runs out,
`files.py` writes and checks, `measuring.py` measures, `report.py` says it all.
"""
