"""The folder that a user gets: plan, ONNX file, packed weights, report and its page.

In: `Subject`, a plan and a demand. Out: checked files. Read `handover.py` first: `run_folder.py` keeps other runs out,
`files.py` writes and checks, `measuring.py` measures, `layer_costs.py` and
`alternatives.py` find what layers cost and what else there was, `report.py` says it all.
"""
