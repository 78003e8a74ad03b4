# Everything a fresh clone needs. `make demo` and `make test` each do all of their own set-up.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NPM_CLIENT := 2.17.5
MUTMUT := 3.8.1
SCHEMATHESIS := 4.32.5
SITE := mkdocs==1.6.1 mkdocs-material==9.8.2 mkdocstrings==1.0.8 mkdocstrings-python==2.0.11 ruff

.PHONY: install demo test test-slow fuzz hub-fuzz hub-clients mutants lint docs docs-site docs-look wheels wheels-check bench bench-peers relation-peers evidence clean

install: $(STAMP)

# Made again when a dependency or an entry point changes: an editable install keeps the old list of entry points.
$(STAMP): pyproject.toml $(wildcard plugins/*/pyproject.toml) constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt \
		-e ".[dev]" -e "plugins/kdhub-tasks[gguf,lora,packaged]" -e plugins/kdhub-logits -e plugins/kdhub-text \
		-e "plugins/kdhub-lm[llama2c]" -e plugins/kdhub-knowledge \
		-e plugins/kdhub-graph -e plugins/kdhub-search -e "plugins/kdhub-vision[av]" \
		-e "plugins/kdhub-generative[lora,packed]"
	touch $(STAMP)

demo: install
	$(BIN)/kdhub distill --method leaf

# One thread a process: two workers with two threads each wait for each other on two cores. Neighbours share what they
# make (fixtures, runs of the kit), so each worker takes a half in its order, and who is done first takes from the other.
# Compiled code is kept: the many processes that tests start would compile kdhub again.
test: install
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: install
	$(BIN)/python -m pytest -m slow

# 100,000 valid files, each changed at random (KDHUB_FUZZ=N: others), and each byte of what outlives a run.
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -s tests/test_fuzz.py tests/test_corpus.py tests/test_damage.py

# What clients may send to the routes of the hub, tried by schemathesis too, which is installed apart.
hub-fuzz: install
	$(BIN)/python -m pytest -m slow tests/test_hub_openapi.py
	mkdir -p build/hub-fuzz
	test -x build/hub-fuzz/venv/bin/schemathesis || $(PYTHON) -m venv build/hub-fuzz/venv
	build/hub-fuzz/venv/bin/pip install --quiet --disable-pip-version-check schemathesis==$(SCHEMATHESIS)
	rm -rf build/hub-fuzz/hub
	$(BIN)/python tests/hub_openapi.py build/hub-fuzz/hub.json build/hub-fuzz/hub > build/hub-fuzz/token
	$(BIN)/kdhub hub serve --folder build/hub-fuzz/hub --port 8788 > build/hub-fuzz/log & echo $$! > build/hub-fuzz/pid
	sleep 5; code=0; for who in "Authorization: Bearer $$(cat build/hub-fuzz/token)" "X-Nobody: true"; do \
		build/hub-fuzz/venv/bin/schemathesis run build/hub-fuzz/hub.json --url http://127.0.0.1:8788 -H "$$who" \
		--checks not_a_server_error --max-examples 200 || code=1; done; kill $$(cat build/hub-fuzz/pid); exit $$code

# Two clients of the hub's protocol that others wrote, and the tests that use them; needs Node.js for one.
hub-clients: install
	mkdir -p build/hub-clients
	test -x build/hub-clients/olah/bin/python || $(PYTHON) -m venv build/hub-clients/olah
	build/hub-clients/olah/bin/pip install --quiet --disable-pip-version-check olah==0.5.4
	npm install --silent --no-fund --no-audit --prefix build/hub-clients @huggingface/hub@$(NPM_CLIENT)
	$(BIN)/python -m pytest -rs tests/test_hub_clients.py

# Do tests see what changes? One part of benchmarks/mutants.py (make mutants PART=divergences), or all, which takes hours.
mutants: install
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt mutmut==$(MUTMUT)
	$(BIN)/python -m benchmarks.mutants $(ARGS) $(PART)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

docs: install
	$(BIN)/python docs/make_tables.py

# The documentation site, in build/site/html; strict: a link that leads nowhere stops it. Needs npm for one script.
docs-site: install
	test -x build/site/venv/bin/mkdocs || { $(PYTHON) -m venv build/site/venv; \
		build/site/venv/bin/pip install --quiet --disable-pip-version-check $(SITE); }
	$(BIN)/python docs/site/pages.py build/site
	test -f build/site/node_modules/mermaid/dist/mermaid.min.js || \
		npm install --silent --no-fund --no-audit --prefix build/site mermaid@11 puppeteer-core@24 axe-core@4
	cp build/site/node_modules/mermaid/dist/mermaid.min.js build/site/pages/
	NO_MKDOCS_2_WARNING=1 build/site/venv/bin/mkdocs build --quiet --config-file build/site/mkdocs.yml

# Pictures of its pages at the widths of a phone and of a desk, in build/site/seen, and faults of accessibility. Needs
# Chromium: CHROMIUM=PATH.
docs-look: docs-site
	cp docs/site/look.mjs build/site/ && cd build/site && node look.mjs

wheels: install
	rm -rf dist build/lib plugins/*/build  # where setuptools would find modules that are gone
	for one in . plugins/*/; do $(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps -w dist ./$$one || exit 1; done

# Do the wheels install by themselves, and distil? By pip, and by uv and pipx where they are.
wheels-check: wheels
	PYTHON=$(PYTHON) bash tests/wheels.sh dist

bench: install
	$(BIN)/python -m benchmarks

# Other programs for the same jobs, in environments of their own, and the measurements beside them. Those for images
# bring torchvision, which transformers would import as well, and fail where it was built for another torch.
bench-peers: install
	test -x build/peers/bin/python || $(PYTHON) -m venv build/peers
	build/peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch transformers datasets
	build/peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt trl==1.16.0 liger-kernel==0.8.5
	test -x build/image-peers/bin/python || $(PYTHON) -m venv build/image-peers
	build/image-peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	build/image-peers/bin/pip install --quiet --disable-pip-version-check -c constraints.txt \
		torchvision torchdistill==1.1.5 timm==1.0.31
	test -x build/recommender-peers/bin/python || $(PYTHON) -m venv build/recommender-peers
	build/recommender-peers/bin/pip install --quiet --disable-pip-version-check rectools==0.19.0
	$(BIN)/python -m benchmarks embedding token_loss lm image_logits popularity

# Pairs in sentences, beside spaCy on the same rows; ADE corpus below KDHUB_DATA.
relation-peers: install
	test -x build/relation-peers/bin/python || $(PYTHON) -m venv build/relation-peers
	build/relation-peers/bin/pip install --quiet --disable-pip-version-check spacy==3.8.18
	$(BIN)/python benchmarks/bench_relations.py quality

# What is claimed of a method, measured again: make evidence METHOD=pld; all methods without it.
evidence: install
	$(BIN)/python -m benchmarks.evidence $(METHOD)
	$(BIN)/python docs/make_tables.py

clean:
	rm -rf .venv build dist *.egg-info plugins/*/*.egg-info
