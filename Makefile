# Two commands on a fresh machine: `make serve` and `make test`.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	&& echo $$p && break; done)
PIP_VERSION := 26.3
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMOS := sine-cell series-lstm
MAX_WORKERS := 8  # of the tests: each takes about 1.5 GB
# What tests need besides Python: PROGRAM, or PROGRAM=PACKAGE where Debian names them differently.
DEBIAN_PACKAGES := chromium curl faketime haproxy node=nodejs qemu-x86_64=qemu-user redis-server

export BENTOML_DO_NOT_TRACK ?= True
# Two demo models are served; a request that names none gets this one.
serve: export CAROUSEL_DEFAULT_MODEL ?= sine-cell

.PHONY: serve demos test chaos check protos packages bench bench-peers clean

serve: demos
	exec $(BIN)/bentoml serve

demos: $(DEMOS:%=artifacts/%/.exported)

artifacts/%/.exported: | $(INSTALLED)
	@if ls artifacts/$*/*/manifest.json >/dev/null 2>&1; then exit 0; fi; \
	set -e; \
	if [ ! -f runs/$*/report.json ]; then $(BIN)/python -m models.train $*; fi; \
	$(BIN)/python -m export models.zoo:$(subst -,_,$*) --name $* \
		--weights runs/$*/weights.safetensors --example runs/$*/holdout.npy \
		--pipeline runs/$*/pipeline.json

test: $(INSTALLED) packages check
	$(BIN)/python -m pytest --numprocesses=logical --maxprocesses=$(MAX_WORKERS)

# What takes minutes: at least 50 kills and 200,000 steps.
chaos: $(INSTALLED) packages
	$(BIN)/python -m pytest -m long -s -n0

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The Python of the gRPC messages; a test says when it is out of date.
protos: $(INSTALLED)
	$(BIN)/python -m tests.service.write_protos .

# Each in a short form: three minutes in all on two cores, and one more for its models, once. The
# whole of them: `python -m benchmarks.latency --full`, `benchmarks.int8`, `benchmarks.sessions`.
bench: demos
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.int8 --hidden 128 --batch 1 64 --turns 11 --iterations 30 \
		--drift-steps 2000
	$(BIN)/python -m benchmarks.engine --batch 1 64 --rounds 5
	$(BIN)/python -m benchmarks.sessions --rounds 5 --sessions 100000
	$(BIN)/python -m benchmarks.scaling --short

# Carousel beside what a user would pick instead; installs them under .peers (2.5 GB).
bench-peers: $(INSTALLED)
	$(BIN)/python -m benchmarks.peers --json .peers/peers.json --plot .peers/peers.png

# Debian packages are installed where that is allowed; elsewhere the tests that need them skip.
packages:
	@missing=; for p in $(DEBIAN_PACKAGES); do \
		command -v $${p%=*} >/dev/null || missing="$$missing $${p#*=}"; \
	done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "no apt-get: tests that need$$missing skip"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	else echo "neither root nor sudo: tests that need$$missing skip"; exit 0; fi; \
	$$sudo apt-get update -qq && $$sudo apt-get install -y -qq --no-install-recommends $$missing

$(INSTALLED): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "make: found no Python 3.11, 3.12 or 3.13; install one, or set PYTHON=..." >&2; exit 1; fi
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check pip==$(PIP_VERSION)
	$(BIN)/pip install --quiet --constraint constraints.txt --group all
	@touch $@

clean:
	rm -rf .venv .latency runs artifacts .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
