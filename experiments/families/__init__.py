"""Networks of the zoo that do something else than classify images, each with its task: data, metric, distance, loss.

In: what every machine has, which is Python's own standard library, scikit-learn's tables, and random numbers. Out:
tasks and networks that the zoo trains on the spot. Read `language_modelling.py` with `language_models.py` first.
"""
