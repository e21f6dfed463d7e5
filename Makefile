# SPDX-License-Identifier: BSD-3-Clause
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.[ch] csrc/*/*.[ch] csrc/isa/isa.def fastconv/kernels/*.py[xd])

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench sanitize docs clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(RUN):
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip

# an editable install with one of the extras of pyproject.toml
$(VENV)/.%: $(RUN) $(SOURCES)
	$(RUN) -m pip install --quiet --editable ".[$*]"
	@touch $@

demo: $(VENV)/.demo ## train LeNet-5 on real handwritten digits, with plots in demo-output/
	$(RUN) -m fastconv demo

test: $(VENV)/.test ## run the tests on every instruction set this machine has
	$(RUN) -m pytest

lint: export PATH := $(abspath $(VENV))/bin:$(PATH)
lint: $(VENV)/.test $(VENV)/.lint ## ruff, mypy, cython-lint and clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/cython-lint fastconv/kernels
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard csrc/*.[ch] csrc/*/*.[ch])

bench: $(VENV)/.bench ## time the layers of known networks against the peers; results in bench-output/
	$(RUN) -m benchmarks.report --output bench-output $(BENCH)

docs: $(VENV)/.test ## run the examples of README and docstrings
	$(RUN) -m pytest -q --doctest-modules --doctest-glob='*.md' README.md docs fastconv

SANITIZED := conv winograd col2im images split prepared pool norm activation dense shape loss call bad_input hostile

# The tests of the kernels with address and undefined-behaviour checks, in a copy so that the installed build stays. No
# memory is recycled, so that a freed block is known as such; --capture=sys leaves the sanitizers' reports visible.
sanitize: $(VENV)/.test ## run the kernels' tests under AddressSanitizer and UBSan
	rm -rf build/sanitize && mkdir -p build/sanitize
	cp -r setup.py pyproject.toml README.md LICENSE csrc fastconv tests benchmarks build/sanitize
	rm -f build/sanitize/fastconv/kernels/*.so
	$(RUN) -m pip install --quiet "setuptools>=77" cython numpy
	cd build/sanitize && CFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g" \
	  LDFLAGS="-fsanitize=address,undefined" $(abspath $(RUN)) setup.py -q build_ext --inplace
	cd build/sanitize && ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 FASTCONV_CACHE_BYTES=0 \
	  LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
	  $(abspath $(RUN)) -m pytest -q --capture=sys $(addprefix tests/test_,$(SANITIZED:=.py))

clean: ## remove what the other targets made
	rm -rf build dist *.egg-info $(VENV) demo-output bench-output fastconv/kernels/*.so
	rm -f $$(ls fastconv/kernels/*.pyx | sed 's/pyx$$/c/')
