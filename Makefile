# Two commands: `make demo` and `make test`. Both install what they need into .venv first.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))) python3)
UV_VERSION := 0.13.9
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# A folder of wheels that pip already knows serves uv too; without one, uv's own selector finds torch's CPU build.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
LLAMA_FLAGS := -DGGML_OPENMP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
TORCH_BACKEND := $(if $(strip $(UV_FIND_LINKS)),,--torch-backend cpu)
# Nothing here talks to a model hub or phones home.
export HF_HUB_OFFLINE := 1
export VLLM_NO_USAGE_STATS := 1
export DO_NOT_TRACK := 1
# An engine imports thousands of modules; without bytecode on disk each start compiles them again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long test-gguf check bench-capture bench-gateway bench-swap bench-log bench-loss bench-distill bench-quant install lock clean

demo: install
	$(BIN)/retort demo

# Two files at a time, grouped and ordered as tests/conftest.py says.
test: install
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "not long and not gguf"

# Tests of a minute or more each: rollouts of real engines, kills, training in several processes.
test-long: install
	$(BIN)/pytest -m "long and not gguf"

# GGUF in llama.cpp, which pip compiles first: 5 to 20 minutes and a C++ compiler, so neither of the two above asks for it.
test-gguf: install
	@$(BIN)/python -c 'import llama_cpp' 2>/dev/null || echo "make: installing the extra gguf into $(VENV); llama.cpp compiles for 5 to 20 minutes" >&2
	CMAKE_ARGS="$(LLAMA_FLAGS) $(CMAKE_ARGS)" $(BIN)/uv pip install --python $(BIN)/python $(TORCH_BACKEND) \
	  --constraint requirements.txt --extra gguf -r pyproject.toml
	$(BIN)/pytest -m gguf

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell gateway capture trainer quant tests README.md CHANGELOG.md CONTRIBUTING.md

# What capture costs an engine, beside none and beside OpenAI logprobs.
bench-capture: install
	$(BIN)/python -m tests.bench.capture

# What gateways cost a client: Retort beside LiteLLM and Portkey, which it installs into bench/peers.
bench-gateway: install
	$(BIN)/python -m tests.bench.gateways

# What clients feel of 50 swaps under 200 streams, ten of them to bundles that are bad.
bench-swap: install
	$(BIN)/python -m tests.bench.swap

# Bytes per token, fidelity and speed of the log against other layouts; LOG=folder measures a real log too.
bench-log: install
	$(BIN)/python -m tests.bench.log $(if $(LOG),--log $(LOG))

# What the teacher's distribution is worth, on the demo's data or, with DATA and TEACHER, on others; FULL=1: the whole table.
bench-distill: install
	$(BIN)/python -m tests.bench.distill $(if $(DATA),--data $(DATA)) $(if $(TEACHER),--teacher $(TEACHER)) $(if $(STEPS),--steps $(STEPS)) \
	  $(if $(FULL),--full)

# Memory and time of projection and loss, fused beside plain, at two vocabularies.
bench-loss: install
	$(BIN)/python -m tests.bench.loss

# Every scheme on the models of `make demo`, which has to have run.
bench-quant: install
	$(BIN)/python -m tests.bench.quant

install: $(STAMP)

$(STAMP): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) not found. Install Python 3.11 or newer, or run: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11. Run: make PYTHON=/path/to/newer/python3 $(MAKECMDGOALS)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "make: cannot create $(VENV). On Debian or Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	$(BIN)/uv pip install --quiet --python $(BIN)/python $(TORCH_BACKEND) -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

# Pin the newest versions that fit together. No index address ends up in the file.
lock:
	$(BIN)/uv pip compile --quiet --upgrade --python $(BIN)/python --no-header --no-annotate $(TORCH_BACKEND) \
	  --extra cpu --extra train --extra demo --group dev pyproject.toml -o requirements.txt

clean:
	rm -rf $(VENV) demo
