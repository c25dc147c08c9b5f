# Every target sets up what it needs in .venv; a machine with Python 3.11 is enough.
#
#   make demo     the whole way on the shipped model: export, verify, segment, track, reconstruct; pictures and a report in demo-out
#   make test     the tests that need no GPU
#   make check    linter, formatter, types, imports
#   make bench    latency and memory of the shipped model next to PyTorch, 100 boxes at once, and how well it tracks; in bench-out
#   make clean    remove all of it
#
# PYTHON picks the interpreter; PIP_ARGS is handed to pip. Without an NVIDIA GPU, a smaller PyTorch comes with
#   make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3.11
PIP_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BINDINGS := $(VENV)/tensorrt-bindings
TENSORRT := 10.14=10.14.1.48.post1 10.16=10.16.1.11 11.4=11.4.0.106

.DELETE_ON_ERROR:
.PHONY: demo test check bench venv clean

demo: venv
	$(BIN)/samrt demo -o demo-out

test: venv $(BINDINGS)
	$(BIN)/python -m pytest -n logical --dist loadfile

check: venv
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: venv
	rm -rf bench-out
	$(BIN)/samrt export nano -o bench-out/nano
	$(BIN)/samrt bench bench-out/nano --video --against pytorch -o bench-out
	$(BIN)/python benchmarks/sam_family_timing.py bench-out/nano --runs 20 > bench-out/boxes.json
	$(BIN)/python -m samrt_export.nano.evaluate_video bench-out/nano --out bench-out/video.json

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(PIP_ARGS) -c constraints.txt -e ".[cpu,openvino,rtx,export,video,mesh,bench,dev]"
	touch $@

# The bindings of two TensorRT versions cannot share an environment. Tests compare their API with what samrt calls.
$(BINDINGS): $(READY)
	for pin in $(TENSORRT); do \
	  $(BIN)/python -m pip install $(PIP_ARGS) --no-deps --target $@/tensorrt-$${pin%%=*} tensorrt-cu13-bindings==$${pin##*=} || exit 1; done

clean:
	rm -rf $(VENV) demo-out bench-out build dist *.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find engines runtime export tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
