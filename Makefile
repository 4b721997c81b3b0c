# Everything runs in a virtual environment of its own, .venv, made on demand.

PYTHON ?= python3
VENV ?= .venv
OUT ?= gpu-out
GPU_ARCH ?= 9.0
DEMO_OUT ?= demo-out
BENCH_ARGS ?=
MINUTES ?= 20
ATTACK_MINUTES ?= 60
# Each test process holds torch and the emulator, so at most four, however many cores there are.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py
PYTHON_FILES := setup.py rcnn_ext tests benchmarks tools
NATIVE_FILES := 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'benchmarks/*.cu' \
  'tests/*.h' 'tests/*.cpp' 'tests/*.cu'

.PHONY: help demo test lint format docs bench gpu gpu-modules test-clients test-compat sanitize \
  mutants fuzz attack test-long audit clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The environment with what the build needs. Torch is the large part, so it comes first and once.
$(VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" "torchvision>=0.26" "setuptools>=77" wheel \
	  ninja "pybind11>=2.12" "numpy>=1.26"
	@touch $@

# The package in place, compiled once for all targets, and again when a native source changes.
$(VENV)/.compiled: $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable .
	@$(BIN)/python -c "from rcnn_ext import _extension; \
	  [print(f'{s.name}: {\"loaded\" if s.loaded else s.reason}') for s in _extension.status().values()]"
	@touch $@

# The extra that a target needs. By name: the package is installed, and is not built again.
$(VENV)/.installed-%: $(VENV)/.compiled
	$(BIN)/python -m pip install --quiet "rcnn-ext[$*]"
	@touch $@

demo: $(VENV)/.installed-train  ## install, train on synthetic data, evaluate, draw, compare the operators
	$(BIN)/rcnn-ext demo --out $(DEMO_OUT)

test: $(VENV)/.installed-dev  ## install, build and run all tests
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-long: $(VENV)/.installed-dev  ## the tests that take minutes: runs killed at random moments
	$(BIN)/python -m pytest -m long

lint: $(VENV)/.installed-dev  ## ruff, clang-format and mypy
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files $(NATIVE_FILES))
	$(BIN)/mypy

format: $(VENV)/.installed-dev  ## fix what ruff and clang-format can fix
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $$(git ls-files $(NATIVE_FILES))

docs: $(VENV)/.installed-dev  ## build the documentation into site/, strictly
	$(BIN)/mkdocs build --strict

bench: $(VENV)/.installed-train  ## operators against torchvision: table, JSON, plots (BENCH_ARGS=...)
	$(BIN)/rcnn-ext bench $(BENCH_ARGS)

# Uses the Python at hand and nothing from the network: a GPU machine may have neither.
gpu:  ## on a GPU machine, offline: build, test, sanitize, compare (OUT=dir)
	$(PYTHON) tools/gpu_gate.py --out $(OUT)

# What the gate takes instead of building, to be copied to a GPU machine beside the sources:
# rcnn_ext/_*.so, rcnn_ext/_build_info.json, benchmarks/cuda/_*.so, build/emulation/recorded.pt.
gpu-modules: $(VENV)/.installed-dev  ## for make gpu on another machine: modules and results to compare with (GPU_ARCH=9.0)
	FORCE_CUDA=1 RCNN_EXT_BENCHMARKS=1 TORCH_CUDA_ARCH_LIST=$(GPU_ARCH) \
	  $(BIN)/python setup.py build_ext --inplace
	$(BIN)/python -m tests.helpers.emulation.recorded

test-clients: $(VENV)/.installed-dev  ## ultralytics and effdet, accelerated, in an environment of their own
	$(BIN)/python tools/test_clients.py

test-compat: $(VENV)/.installed-dev  ## one wheel under torch 2.11 and under a CPU-only torch, with torchvision too
	$(BIN)/python tools/test_compat.py

sanitize: $(VENV)/.installed-dev  ## CPU kernels and selective search under ASan, UBSan and TSan
	$(BIN)/python tools/sanitize.py

mutants: $(VENV)/.installed-dev  ## break the CUDA kernels and see that the emulated tests notice
	$(BIN)/python tools/mutate_cuda.py --out docs/mutants.md

fuzz: $(VENV)/.installed-dev  ## damage files of every kind at random (MINUTES=20)
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES)

attack: $(VENV)/.installed-dev  ## wrong calls, damaged files, threads, little memory (ATTACK_MINUTES=60)
	$(BIN)/python -m tests.attack --minutes $(ATTACK_MINUTES)

audit: $(VENV)/.installed-dev  ## known vulnerabilities and the licenses of what is installed
	$(BIN)/pip-audit --skip-editable
	$(BIN)/pip-licenses --order=license

clean:  ## remove what was built, keep the environment
	rm -rf build dist site *.egg-info rcnn_ext/*.so benchmarks/cuda/*.so rcnn_ext/_build_info.json $(VENV)/.compiled $(VENV)/.installed-*
