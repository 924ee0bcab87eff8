# The whole vocabulary: build, test, lint, demo, bench, wheel, test-wheel, clean. Each does its own set-up, and nothing twice.
PYTHON ?= python3
export PYTHON
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export VIRTUAL_ENV := $(CURDIR)/.venv

RUST := $(shell find rust -name '*.rs' -o -name '*.c' -o -name Cargo.toml) Cargo.toml Cargo.lock

.PHONY: build test test-rust test-python lint demo bench wheel test-wheel clean

# The extension, compiled in release mode, beside the Python package; the package itself is installed editable.
build: .venv/.built

.venv/.bootstrapped: .ci/bootstrap
	.ci/bootstrap
	touch $@

.venv/.installed: pyproject.toml .venv/.bootstrapped
	uv pip install -q --python $(BIN)/python -r pyproject.toml --extra encode --extra streaming --group dev
	touch $@

.venv/.built: $(RUST) .venv/.installed
	maturin develop --release --uv --quiet
	touch $@

test: test-rust test-python

test-rust: .venv/.bootstrapped
	cargo test --workspace --quiet

test-python: build
	python -m pytest -n auto --dist loadfile

lint: build
	cargo fmt --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	ruff format --check .
	ruff check .
	mypy
	lint-imports
	python -m mypy.stubtest latentq._core

# The whole way once, on the photographs inside scikit-image: see examples/demo.py.
demo: build
	python examples/demo.py

# Everything in benches/RESULTS.md is made by these; BENCH=quantizer runs one of them.
BENCH ?= *
bench: build
	uv pip install -q --python $(BIN)/python -r pyproject.toml --extra encode --extra streaming --group dev --group bench
	for script in benches/$(BENCH).py; do python $$script || exit 1; done

# One wheel for every Python >= 3.11 and every Linux with glibc >= 2.17: zig links against that glibc's symbols.
wheel: .venv/.installed
	rm -rf dist
	maturin build --release --zig --compatibility manylinux_2_17 --out dist
	ls -l dist

# The test suite against the wheel, in a fresh environment without a compiler on its path.
test-wheel: wheel
	.ci/test-wheel dist/*.whl

clean:
	rm -rf .venv target dist demo python/latentq/*.so
