PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DOCS := .venv/.docs

.PHONY: demo test lint docs notebooks dist clean

demo: $(READY)
	$(BIN)/ehrseq demo

# One thread a worker: the suite's networks are too small to share among threads. A file stays with one worker, which
# makes its fixtures once; in the order of their names, as the few long tests would come last in that of their numbers.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# A warning is an error: a link that leads nowhere, a page that nothing leads to. Nothing is fetched while building.
docs: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q docs docs/_build/html

# Notebooks that want outside data or another package say so and stop.
notebooks: $(DOCS)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --nbmake --nbmake-timeout=240 examples

dist: $(READY)
	rm -rf dist
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m build
	$(BIN)/python tests/docs/check_dist.py dist

$(DOCS): $(READY)
	PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -e '.[docs]'
	@touch $@

# The stamp is newer than what it was made from, so a second `make` installs nothing. The constraint variables
# pin the build back-end too, which pip installs apart; a newer pip reads the second one for that.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "expected Python 3.11 or newer, found %d.%d: run make PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build dist docs/_build docs/_generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find ehrseq tests -name __pycache__ -type d -prune -exec rm -rf {} +
