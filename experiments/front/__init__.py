"""The front of one network: what is attainable, as a picture, a table, and a plan for each point.

In: settings of a compression. Out: a folder that is renewed with each plan that is scored. Read `find_front.py` first.
"""
