"""What calibration records at a layer, and the closed forms that rest on it.

In: second moments, ranges and importances. Out: `LayerStatistics`, error feedback. Read `statistics.py` first.
"""
