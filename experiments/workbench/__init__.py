"""What studies share: pages, plots, kept runs, counts of lines.

In: figures. Out: Markdown and SVG. Read `results_page.py` first.
"""
