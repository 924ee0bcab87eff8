# `make` prints the targets. Each does its own set-up, in .venv and target/, and nothing twice.
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv
# Compiled once at installation: where Python may not write bytecode (CI), every `import torch` compiles it again.
export UV_COMPILE_BYTECODE := 1

RUST := $(shell find rust -name '*.rs' -o -name '*.c' -o -name Cargo.toml) Cargo.toml Cargo.lock
# On a terminal, cargo and uv show their own progress.
QUIET := $(shell test -t 2 || echo --quiet)
SAY := @printf '\nlatentq: %s\n'
INSTALL := uv pip install $(QUIET) --python $(BIN)/python -r pyproject.toml --extra encode --extra streaming
# The tests use the dependencies that the release build compiled; only the core is compiled again, with its checks on.
CHECKED := --config 'profile.release.package.latentq-core.debug-assertions=true' \
	--config 'profile.release.package.latentq-core.overflow-checks=true'

.DEFAULT_GOAL := help
.PHONY: help build test test-rust test-python test-long test-hosts test-readers test-report lint demo bench bench-results bench-rivals bench-gpu docs wheel test-wheel clean

help: ## print this list
	@echo 'usage: make TARGET'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: .venv/.built ## compile the Rust core and install the package editable in .venv

.venv/.bootstrapped: .ci/bootstrap
	$(SAY) 'looking for the tools of the build, and making .venv'
	@.ci/bootstrap
	@touch $@

.venv/.installed: pyproject.toml .venv/.bootstrapped
	$(SAY) 'installing Python packages into .venv; the first time about 3 GB, mostly torch: some minutes'
	@$(INSTALL) --group dev
	@touch $@

.venv/.built: $(RUST) .venv/.installed
	$(SAY) 'compiling the Rust core and the C libraries in it; the first time about 3 minutes on two cores'
	@maturin develop --release --uv $(QUIET)
	@touch $@

test: test-rust test-python ## run the tests, about 12 minutes on two cores

test-rust: build ## run the tests of the Rust core
	$(SAY) 'compiling and running the Rust tests; about 2 minutes on two cores'
	@cargo test --package latentq-core --lib --release $(CHECKED) $(QUIET)

test-python: build ## run the tests of the Python package
	$(SAY) 'running the Python tests; about 10 minutes on two cores'
	@python -m pytest -n auto --dist loadfile -m 'not long'

test-long: build ## run the tests that kill, compile or race for long
	$(SAY) 'running the long Python tests; some of them take minutes'
	@python -m pytest -n auto --dist loadfile -m long

test-hosts: build ## encode on hosts apart, one of them cut off for a while (root, Linux, iproute2)
	$(SAY) 'encoding in network namespaces over a slow and lossy network; about a minute'
	@PYTHONPATH=tests python -m hosts.check

test-readers: build ## compare what three stock readers of MDS read with docs/mds.md
	$(SAY) 'installing stock readers in target/readers and reading our datasets with them; about 3 minutes on two cores'
	@PYTHONPATH=tests python -m readers.check

test-report: build ## open report pages in Chromium, on a desk and on a phone (SCREENSHOTS=DIR keeps pictures)
	$(SAY) 'opening report pages in Chromium; it takes minutes'
	@python -m pytest tests/browser/report_pages.py

lint: build ## check formatting, lints, types, import layers and stubs
	$(SAY) 'checking Rust'
	@cargo fmt --check
	@cargo clippy --workspace --release --all-targets $(QUIET) -- -D warnings
	@.ci/rust-imports
	$(SAY) 'checking Python'
	@ruff format --check .
	@ruff check .
	@mypy
	@lint-imports
	@python -m mypy.stubtest latentq._core
	@! command -v actionlint >/dev/null || actionlint

demo: build ## photographs to a dataset, through a training epoch and back to pictures (examples/demo.py)
	$(SAY) 'running examples/demo.py; about 20 seconds'
	@python examples/demo.py

# make bench K=dequantize runs the groups with that word in their name.
K ?=
bench: build ## run the benchmarks (K=WORD: some of them)
	$(SAY) 'installing the rivals'
	@$(INSTALL) --group dev --group bench
	$(SAY) 'running the benchmarks; all of them take about 15 minutes'
	@python -m pytest benches/ -k '$(K)' --benchmark-json target/bench.json

bench-results: bench ## run the benchmarks and write their tables into benches/RESULTS.md
	@python benches/write_results.py target/bench.json

bench-rivals: build ## race other tools, each in an environment of its own, and put the table into README.md
	$(SAY) 'installing rivals in target/rivals, about 5 GB; the races take 10 minutes or more'
	@python benches/rivals.py
	@python benches/rivals.py --write-readme

bench-gpu: build ## check and measure the CUDA path on one card (benches/gpu.py)
	$(SAY) 'running benches/gpu.py; about 8 minutes'
	@python benches/gpu.py

docs: build ## build the documentation site in site/
	$(SAY) 'building the documentation; about 20 seconds'
	@$(INSTALL) --group dev --group docs
	@NO_MKDOCS_2_WARNING=1 mkdocs build --strict $(QUIET)
	@echo 'the site: site/index.html'

# One wheel for every Python >= 3.11. On Linux it is for every glibc >= 2.17: zig links against that version's symbols.
PORTABLE := $(if $(filter Linux,$(shell uname -s)),--zig --compatibility manylinux_2_17)
wheel: .venv/.installed ## build a wheel in dist/
	$(SAY) 'compiling a wheel in dist/; about 3 minutes on two cores'
	@rm -rf dist
	@maturin build --release $(PORTABLE) --out dist $(QUIET)
	@ls -l dist

TESTS ?= tests
test-wheel: wheel ## run the Python tests against the wheel, in a fresh environment without a compiler
	@.ci/test-wheel dist/*.whl $(TESTS)

clean: ## remove everything that was built
	rm -rf .venv target dist demo site python/latentq/*.so
