# Everything runs in a virtual environment of its own, .venv, made on demand.
#   make demo          install, train on made data, evaluate, draw, compare the operators
#   make test          install, build and run all tests
#   make lint          ruff, clang-format and mypy
#   make bench         operators against torchvision and the reference: table, JSON, plots
#   make gpu OUT=dir   on a machine with a GPU, offline: build, test, sanitize, compare
#   make test-compat   one wheel under torch 2.11 and under a CPU-only torch
#   make sanitize      the CPU kernels and selective search under ASan and UBSan
#   make mutants       break the CUDA kernels and see that the emulated tests notice
#   make clean         remove what was built, keep the environment

PYTHON ?= python3
VENV ?= .venv
OUT ?= gpu-out
DEMO_OUT ?= demo-out
BENCH_ARGS ?=
# Files of tests side by side; a process holds torch and the emulator, so not one for every core.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadfile

BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py
PYTHON_FILES := setup.py rcnn_ext tests benchmarks tools
NATIVE_FILES := 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'benchmarks/*.cu'

.PHONY: demo test lint format bench gpu test-compat sanitize mutants clean
.DELETE_ON_ERROR:

# The environment with what the build needs. Torch is the large part, so it comes first and once.
$(VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "torch>=2.11" "torchvision>=0.26" "setuptools>=77" wheel \
	  ninja "pybind11>=2.12" "numpy>=1.26"
	@touch $@

# The package in place, with the extras that a target needs; rebuilt when a native source changes.
$(VENV)/.installed-%: $(VENV)/.made $(SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[$*]"
	@$(BIN)/python -c "from rcnn_ext import _extension; \
	  [print(f'{s.name}: {\"loaded\" if s.loaded else s.reason}') for s in _extension.status().values()]"
	@touch $@

demo: $(VENV)/.installed-train
	$(BIN)/rcnn-ext demo --out $(DEMO_OUT)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files $(NATIVE_FILES))
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix $(PYTHON_FILES)
	$(BIN)/ruff format $(PYTHON_FILES)
	$(BIN)/clang-format -i $$(git ls-files $(NATIVE_FILES))

bench: $(VENV)/.installed-train
	$(BIN)/rcnn-ext bench $(BENCH_ARGS)

# Uses the Python at hand and nothing from the network: a GPU machine may have neither.
gpu:
	$(PYTHON) tools/gpu_gate.py --out $(OUT)

test-compat: $(VENV)/.installed-test
	$(BIN)/python tools/test_compat.py

sanitize: $(VENV)/.installed-test
	$(BIN)/python tools/sanitize.py

mutants: $(VENV)/.installed-test
	$(BIN)/python tools/mutate_cuda.py --out docs/mutants.md

clean:
	rm -rf build dist *.egg-info rcnn_ext/*.so benchmarks/cuda/*.so rcnn_ext/_build_info.json $(VENV)/.installed-*
