# Each target sets up .venv by itself; what is there already is left alone.
PYTHON ?= $(shell for v in 3.12 3.11 3.13 3.10; do python$$v -c '' 2>/dev/null && echo python$$v && exit; done; echo python3)
RECIPE ?= reference
RUN ?= runs/$(RECIPE)
DATA ?= auto
BIN := .venv/bin

.PHONY: run test lint figures bench fuzz clean

run: .venv/installed
	$(BIN)/python train_full.py --recipe $(RECIPE) --data $(DATA) --run $(RUN)
	$(BIN)/python prune.py --run $(RUN)
	$(BIN)/python quantize.py --run $(RUN)
	$(BIN)/python deploy.py --run $(RUN)

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

figures: .venv/installed
	$(MAKE) run RECIPE=seed
	$(MAKE) run
	$(BIN)/python -m deepcomp.figures --out imgs runs/seed runs/reference

bench: .venv/installed
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/clustering.py
	$(BIN)/python benchmarks/vgg.py

fuzz: .venv/installed
	$(BIN)/python benchmarks/fuzz.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:
	rm -rf .venv runs
