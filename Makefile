# graylb. `make run` and `make test` install what they need; both are quick the second time.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
PY := $(VENV)/bin/python
SOURCES := setup.py $(wildcard graylb/*.pyx graylb/*.pxd graylb/*.pxi)
TREE := graylb tests config benchmarks docs setup.py pyproject.toml README.md LICENSE
PYTEST := -m pytest $(ARGS)
# what the load benchmarks and their tests drive; the last two are kept from running as services
LOAD := wrk=wrk nginx=nginx-light haproxy=haproxy
LOAD_H2 := h2load=nghttp2-client nghttpx=nghttp2-proxy nghttp2/nghttp2.h=libnghttp2-dev openssl/ssl.h=libssl-dev
# what the tests run besides, and keep from running as a service too
PARTS := $(LOAD) etcd=etcd-server prometheus=prometheus
# what parts of the build are over; GRAYLB_H2=off and GRAYLB_TLS=off do without
HEADERS := $(if $(filter off,$(GRAYLB_H2)),,nghttp2/nghttp2.h=libnghttp2-dev) \
	$(if $(filter off,$(GRAYLB_TLS)),,openssl/ssl.h=libssl-dev)

.PHONY: help run test test-all lint build debug asan fuzz cov bench bench-control bench-h2 h2spec soak faults clean distclean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: build ## the proxy with two small upstreams of its own, on 127.0.0.1:8080
	@bash scripts/need curl=curl
	exec $(PY) -m graylb.demo

test: lint ## ruff, mypy and all tests (ARGS='-k channel' goes to pytest)
	@bash scripts/need $(PARTS)
	$(PY) $(PYTEST)

test-all: lint ## the same with the tests marked slow
	@bash scripts/need $(PARTS)
	$(PY) $(PYTEST) -m ''

lint: build ## ruff and mypy
	@$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

build: $(VENV)/.built ## the venv with everything, extensions in place

# ensurepip leaves no trace of its Python's health: a venv whose interpreter went away is made anew
$(VENV)/.made:
	@python=$$(bash scripts/need python)
	$(PY) -c '' 2>/dev/null || { rm -rf $(VENV); "$$python" -m venv $(VENV); }
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.made
	@bash scripts/need $(HEADERS)
	echo 'graylb: installing the Python packages and compiling; the first time takes a minute or two'
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[test,lint]'
	touch $@

# pip has compiled everything the first time. Later setup.py alone does: the pinned setuptools and Cython are in the venv.
# Where a part is left out, for want of its library, the count is short and setup.py says so.
$(VENV)/.built: $(SOURCES) $(VENV)/.installed
	@bash scripts/need $(HEADERS)
	newest=$$(ls -t $(SOURCES) | head -n 1)
	wanted=$$(ls graylb/*.pyx | wc -l)
	current=$$(find graylb -maxdepth 1 -name '*.so' -newer "$$newest" | wc -l)
	if [ "$$current" -lt "$$wanted" ]; then $(PY) setup.py --quiet build_ext --inplace; fi
	touch $@

# A flavour lives in a copy of the tree under build/, so that it never disturbs the build in use.
define flavour
	mkdir -p build/$(1)
	find build/$(1) -type f ! -path 'build/$(1)/build/*' ! -name '*.so' -delete
	tar --exclude='*.so' --exclude=__pycache__ --exclude='*.egg-info' -c $(TREE) | tar -x -C build/$(1)
	cd build/$(1)
	export GRAYLB_BUILD=$(1) PYTHONPATH="$$PWD"
	../../$(PY) setup.py --quiet build_ext --inplace
endef

debug: build ## the tests over an unoptimised build with bounds checks
	@$(call flavour,debug)
	../../$(PY) $(PYTEST)

# Leaks: with two frames of each allocation kept, tests/leaks.supp tells ours from those of Python and other extensions.
# Reports go to files, for most processes of the tests have nobody who reads their stderr. The benchmarks' tests stay away:
# not every peer lives with the sanitizers' runtime in its address space; and those of parts that are Python alone.
PURE := --ignore=tests/cli --ignore=tests/control --ignore=tests/model
LEAKS := detect_leaks=1:malloc_context_size=2
asan: build ## the tests over a build with address, leak and undefined-behaviour sanitizers
	@$(call flavour,asan)
	rm -f build/report.*
	export LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)"
	export ASAN_OPTIONS="$(LEAKS):log_path=$$PWD/build/report" PYTHONMALLOC=malloc
	export LSAN_OPTIONS="suppressions=$$PWD/tests/leaks.supp:print_suppressions=0"
	export UBSAN_OPTIONS="print_stacktrace=1:log_path=$$PWD/build/report"
	failed=0
	../../$(PY) $(PYTEST) --ignore=tests/benchmarks $(PURE) || failed=$$? # the peers are not ours to preload
	unset LD_PRELOAD
	# a process that is killed while it looks for leaks only says that it could not
	for each in $$(grep -l 'LeakSanitizer has encountered a fatal error' build/report.* 2>/dev/null); do
		grep -qE 'ERROR: |runtime error' "$$each" || rm "$$each"
	done
	if compgen -G 'build/report.*' >/dev/null; then cat build/report.*; failed=1; fi
	exit $$failed

# clang and atheris' runtime (libFuzzer with the sanitizers) go together; gcc's do not carry its counters
fuzz: build ## libFuzzer over every parser, with sanitizers, a minute each (ARGS='-runs=100000 -seed=1')
	@bash scripts/need clang=clang
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	$(call flavour,fuzz)
	export LD_PRELOAD="$$(../../$(PY) -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/asan_with_fuzzer.so"
	export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc PYTHONHASHSEED=0
	for target in $$(../../$(PY) -c 'from tests.fuzz.targets import TARGETS; print(*TARGETS)'); do
		echo "== $$target"
		../../$(PY) -m tests.fuzz.guided $$target $(or $(ARGS),-max_total_time=60)
	done

cov: build ## the tests over a line-traced build; report in htmlcov/
	@$(PY) -m pip install --quiet --disable-pip-version-check -e '.[cov]'
	$(call flavour,cov)
	cp -r build/cython-cov/graylb/*.c graylb/ # the coverage plugin looks for them beside the sources
	printf '%s\n' '[run]' 'plugins = Cython.Coverage' 'source = graylb' 'parallel = true' 'patch = subprocess' > .coveragerc
	../../$(PY) -m coverage run $(PYTEST)
	../../$(PY) -m coverage combine --quiet
	../../$(PY) -m coverage html --quiet --directory ../../htmlcov
	../../$(PY) -m coverage report --skip-covered

bench: build $(VENV)/.peers ## the benchmark suite against nginx, HAProxy, Envoy, Traefik and Caddy
	@bash scripts/need $(LOAD) perf=linux-perf
	$(PY) -m benchmarks $(ARGS)

bench-h2: build $(VENV)/.peers ## HTTP/2 and TLS under load, against nghttpx, HAProxy, Envoy and nginx: eleven minutes
	@bash scripts/need $(LOAD) $(LOAD_H2)
	for each in h2 tls streams; do $(PY) -m benchmarks $$each $(ARGS); done

# no package of Debian's has it; the Go module proxy does
H2SPEC := github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
h2spec: build $(VENV)/.peers ## h2spec against graylb and the peers; needs Go to build it the first time
	@bash scripts/need $(LOAD) $(LOAD_H2)
	mkdir -p build/h2spec
	command -v h2spec build/h2spec/h2spec >/dev/null || GOBIN="$$PWD/build/h2spec" go install $(H2SPEC)
	PATH="$$PATH:$$PWD/build/h2spec" $(PY) -m benchmarks h2spec $(ARGS)

bench-control: build ## the control plane under load on a real etcd, 15 minutes (ARGS=--quick: two)
	@bash scripts/need $(LOAD) etcd=etcd-server
	$(PY) -m benchmarks control $(ARGS)

soak: build ## a long mixed load: memory, descriptors, WebSockets, changes (ARGS='--requests 10000000')
	@bash scripts/need $(LOAD)
	$(PY) -m benchmarks.soak $(ARGS)

faults: build $(VENV)/.peers ## the fault suite beside nginx, HAProxy and Envoy, ten minutes (ARGS='--only 7', ARGS=--quick: graylb alone, short)
	@bash scripts/need $(LOAD)
	$(PY) -m benchmarks.faults $(ARGS)

# what cannot be had for this machine is left out of the benchmark, which says so
$(VENV)/.peers: pyproject.toml $(VENV)/.made
	@wanted=$$($(PY) -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")')
	echo 'graylb: installing the proxies to compare with'
	while read -r each; do
	    $(PY) -m pip install --quiet --disable-pip-version-check "$$each" || echo "graylb: $$each cannot be had here"
	done <<< "$$wanted"
	touch $@

clean: ## everything built, but not the venv
	rm -rf build .build dist htmlcov *.egg-info graylb/*.so .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f $(VENV)/.built
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean ## the venv too
	rm -rf $(VENV)
