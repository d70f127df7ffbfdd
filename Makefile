# Two commands do all the set-up: `make demo` and `make test`.
# PYTHON=/path/to/python3.11 chooses the Python; MARQUEE_REQUIREMENTS=gpu the packages for a GPU machine.

SHELL := /bin/bash
IS_PYTHON_3_11 := import sys; sys.exit(sys.version_info[:2] != (3, 11))
# The first that is Python 3.11; or any python3, which then says what is missing.
PYTHON ?= $(shell for python in .venv/bin/python python3.11 python3; do \
	$$python -c "$(IS_PYTHON_3_11)" 2>/dev/null && echo $$python && exit; done; command -v python3)

.PHONY: demo test sanitize setup setup-test format

demo: setup
	.venv/bin/python -m benchmarks.demo $(ARGS)

test: setup-test
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	.venv/bin/pytest $(ARGS)

# The C++ kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer, on every path of this processor.
sanitize: setup-test
	.venv/bin/python tests/sanitize.py $(ARGS)

setup:
	@$(or $(PYTHON),$(error Python 3.11 is needed; there is no python3 on PATH)) requirements/install.py run

setup-test:
	@$(or $(PYTHON),$(error Python 3.11 is needed; there is no python3 on PATH)) requirements/install.py test

format: setup-test
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .
