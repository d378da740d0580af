PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: setup demo test test-slow check format bench api size clean

setup: $(STAMP)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt torch==2.13.0 setuptools
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --no-build-isolation --editable .[dev,study]
	touch $(STAMP)

demo: setup            ## learn on the digits zoo, compress three networks never seen
	$(BIN)/python -m plywise.experiments.demo

test: setup            ## the tests, without the slow studies
	$(BIN)/pytest -q --numprocesses auto --dist loadfile

test-slow: setup       ## the slow studies
	$(BIN)/pytest -q -m slow

check: setup           ## format, lint, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -q --numprocesses auto --dist loadfile

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup           ## the tables under experiments/results
	$(BIN)/python -m plywise.experiments.studies.bench

api: setup             ## the API reference, from docstrings, in docs/api
	$(BIN)/pip install --quiet --no-compile --constraint constraints.txt --no-build-isolation --editable .[docs]
	$(BIN)/pdoc --docformat google --output-directory docs/api plywise '!plywise.experiments.breadth'

size: setup            ## lines per file and in total
	$(BIN)/python -m plywise.experiments.workbench.size

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
