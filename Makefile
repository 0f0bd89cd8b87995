# make run      a sample cluster's DNS on 127.0.0.1:5300, and what to ask it
# make test     every test, type check and lint
# make PYTHON=/path/to/python3.13 ...   another interpreter than the machine's python3

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# The commands that the tests and benchmarks start, and the Debian packages that bring them.
TEST_COMMANDS := dig delv kdig named-checkzone ip ss nft iptables ip6tables conntrack curl sysctl setpriv unshare prlimit \
	musl-gcc cc unbound knotd nsd dnsmasq named
TEST_PACKAGES := bind9-dnsutils knot-dnsutils bind9-utils iproute2 nftables iptables conntrack curl procps util-linux \
	musl-tools gcc libc6-dev unbound knot nsd dnsmasq-base bind9
BENCH_COMMANDS := dnsperf taskset
BENCH_PACKAGES := dnsperf util-linux

export PATH := $(PATH):/usr/sbin:/sbin

.PHONY: help install packages bench-packages run test lint format bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 22

install: $(STAMP) ## make .venv with kdns (editable) and what the tests need

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "kdns needs Python 3.11 to 3.14, and there is no $(PYTHON); \
	install one, or name it: make install PYTHON=/path/to/python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { echo "kdns needs Python \
	3.11 to 3.14, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make install PYTHON=/path/to/python3.13" >&2; \
	exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call debian,python3-venv,the module venv of $(PYTHON))
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	@touch $@

packages: ## install the programs that the tests start (Debian; as root)
	@missing=$$(for c in $(TEST_COMMANDS); do command -v $$c >/dev/null || printf ' %s' $$c; done); \
	test -z "$$missing" || $(call debian,$(TEST_PACKAGES),$$missing)

bench-packages: packages ## and those that the benchmarks need besides
	@missing=$$(for c in $(BENCH_COMMANDS); do command -v $$c >/dev/null || printf ' %s' $$c; done); \
	test -z "$$missing" || $(call debian,$(BENCH_PACKAGES),$$missing)

run: install ## serve the sample cluster on 127.0.0.1:5300 until Ctrl-C
	@exec $(BIN)/kdns demo

test: install packages ## run all tests, mypy and ruff among them
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile

lint: install ## mypy --strict, ruff check, ruff format
	$(BIN)/mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: install ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install bench-packages ## measure kdns beside Knot, dnsmasq and Unbound on this machine
	$(BIN)/python -m tests.bench

clean: ## remove what was built, installed and cached here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find kdns tests -name __pycache__ -type d -prune -exec rm -rf {} +

# $(call debian,PACKAGES,WHAT IS MISSING): a shell command that installs packages, or says why it cannot. Meanwhile no
# service is started (policy-rc.d): name servers among them would take port 53.
define debian
{ if ! command -v apt-get >/dev/null; then \
    echo "missing: $(strip $(2)); Debian has it in: $(1)" >&2; exit 1; \
  elif [ "$$(id -u)" != 0 ]; then \
    echo "missing: $(strip $(2)); install it with: sudo apt-get install $(1)" >&2; exit 1; \
  else \
    policy=/usr/sbin/policy-rc.d; \
    test -e $$policy || { trap "rm -f $$policy" EXIT INT TERM; \
      printf '#!/bin/sh\nexit 101\n' >$$policy && chmod 755 $$policy; }; \
    apt-get update -qq && \
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 $(1) >/dev/null; \
  fi; }
endef
