"""Pages that show what a hand-over holds, made from `report.json` alone.

In: one report or several. Out: self-contained HTML. Read `report_page.py` first: `report_tables.py` takes the report
apart, `charts.py` draws, `usage.py` writes code for the user, `rendering.py` fills the templates; `compare_page.py`
and `comparison.py` do the same for several reports.
"""
