"""The price table: what every (layer, recipe) costs and loses.

In: `Bank` and costs. Out: `PriceTable`, plain arrays. Read `prices.py`, then `pricing.py`.
"""
