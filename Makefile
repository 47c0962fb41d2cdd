# The developer's entry points. Each target first installs what it needs into .tools/ (tools/setup.py), without root.
#
#   SERVER=9.1|8.0   the installed Valkey to run on
#   VALKEY_SERVER=…  a server of your own instead, by path
#   ARGS=…           more arguments for pytest, the examples, the benchmarks or the server

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
SERVER ?= 9.1
PORT   ?= 6379
ARGS   ?=

tools  := $(CURDIR)/.tools
python := $(tools)/venv/bin/python
setup  := $(PYTHON) tools/setup.py

ifeq ($(filter 9.1 8.0,$(SERVER)),)
  $(error SERVER is 9.1 or 8.0, not '$(SERVER)'; set VALKEY_SERVER to use a server of your own)
endif
ifdef VALKEY_SERVER
  server_step :=
  # Servers are started in other folders, so a relative path is made absolute; a bare name is looked up on the PATH.
  override VALKEY_SERVER := $(abspath $(or $(shell command -v '$(VALKEY_SERVER)'),$(VALKEY_SERVER)))
else
  server_step := server-$(SERVER)
  VALKEY_SERVER := $(tools)/server-$(SERVER)/bin/valkey-server
endif
FS_MODULE := $(abspath $(or $(CARGO_TARGET_DIR),target))/release/libvalkey_feature_store.so
export VALKEY_SERVER FS_MODULE

# bindgen reads the module API's header with libclang, and the C compiler's own headers from the compiler.
LIBCLANG_PATH ?= $(tools)/libclang
BINDGEN_EXTRA_CLANG_ARGS ?= -I$(shell $(CC) -print-file-name=include)
export LIBCLANG_PATH BINDGEN_EXTRA_CLANG_ARGS

.PHONY: help
help: ## list the targets
	@echo "make TARGET [SERVER=9.1|8.0] [VALKEY_SERVER=path] [ARGS=...]"
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## /  \1\t/p' Makefile | expand -t 10

.PHONY: demo
demo: build setup-server ## play the flights example on a server of its own
	@$(python) examples/flights/demo.py $(ARGS)

.PHONY: example
example: build setup-server ## train a model on features of the store, serve it, ask it
	@$(python) examples/late_flights/demo.py $(ARGS)

.PHONY: test
test: build setup-server ## core tests, then the tests against a real server
	cargo test --locked -p feature-store-core
	@$(setup) node
	@FS_NODE=$(tools)/node/bin/node NODE_PATH=$(tools)/node/node_modules $(python) -m pytest $(ARGS)

.PHONY: run
run: build setup-server ## start a server with the module in the foreground, on PORT
	@mkdir -p $(tools)/data
	$(VALKEY_SERVER) --bind 127.0.0.1 --port $(PORT) --dir $(tools)/data --loadmodule $(FS_MODULE) $(ARGS)

.PHONY: bench
bench: build ## measure on both servers
	@$(setup) server-9.1 server-8.0 feast
	@VALKEY_SERVER_9=$(tools)/server-9.1/bin/valkey-server VALKEY_SERVER_8=$(tools)/server-8.0/bin/valkey-server \
	VALKEY_BENCHMARK=$(tools)/server-8.0/bin/valkey-benchmark VALKEY_CLI=$(tools)/server-8.0/bin/valkey-cli \
	JEMALLOC=$(tools)/server-8.0/lib/libjemalloc.so.2 FEAST_PYTHON=$(tools)/feast/bin/python \
	$(python) benches/run.py $(ARGS)

.PHONY: lint
lint: setup-venv ## formatting and lints of the Rust and Python code
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	$(python) -m ruff check $(python_folders)
	$(python) -m ruff format --check $(python_folders)
python_folders = $(wildcard tests examples benches tools)

.PHONY: format
format: setup-venv ## rewrite the Rust and Python code as lint wants it
	cargo fmt --all
	$(python) -m ruff check --fix $(python_folders)
	$(python) -m ruff format $(python_folders)

.PHONY: build
build: setup-venv ## build the module
	cargo build --release --locked

.PHONY: env
env: setup-venv ## print the variables that plain cargo needs: eval "$(make -s env)"
	@echo "export LIBCLANG_PATH='$(LIBCLANG_PATH)' BINDGEN_EXTRA_CLANG_ARGS='$(BINDGEN_EXTRA_CLANG_ARGS)'"

.PHONY: clean
clean: ## remove what was built; the tool folder stays until rm -r .tools
	cargo clean
	rm -rf .pytest_cache .ruff_cache $(tools)/data
	find $(wildcard tests examples benches tools) -name __pycache__ -prune -exec rm -rf {} +

.PHONY: setup-venv setup-server
setup-venv:
	@$(setup) venv
setup-server:
ifdef server_step
	@$(setup) $(server_step)
else
	@test -x '$(VALKEY_SERVER)' || { echo "VALKEY_SERVER: there is no program $(VALKEY_SERVER)" >&2; exit 1; }
endif
