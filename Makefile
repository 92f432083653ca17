# The commands of this project. `make` alone lists them. Each sets up what it needs.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# The folder with the real workflow graphs for `make test-real`.
WFINSTANCES ?= ../shared/data/wfinstances
# How many seeds `make simulate` runs.
SEEDS ?= 1000
# How many minutes `make fuzz` takes, and how many workers `make deaths` kills.
MINUTES ?= 5
KILLS ?= 30

# Options of `make bench`; the rounds, the append-only file and the systems of `make bench-peers` (all if none is named).
BENCH ?=
PEERS ?=
ROUNDS ?= 3
MODES ?= no,everysec
DOCS ?=

# Loads the paths that the set-up found; what the caller has set wins.
WITH_SERVERS = set -a; \
  given="$${STEPFLEET_TEST_SERVER:-}"; given_tls="$${STEPFLEET_TEST_SERVER_TLS:-}"; . .tools/env; \
  STEPFLEET_TEST_SERVER="$${given:-$$STEPFLEET_TEST_SERVER}"; \
  STEPFLEET_TEST_SERVER_TLS="$${given_tls:-$$STEPFLEET_TEST_SERVER_TLS}"; set +a;

# The program of images. Relative relocations are packed, which the glibc of the base image (2.36) can read.
IMAGE_PROGRAM = cargo rustc --profile image --locked -p stepfleet --bin stepfleet -- -C link-arg=-Wl,-z,pack-relative-relocs

# The distribution's build, where there is one: it is what people run, and its allocator makes it up to three times faster.
MEASURED_SERVER = export STEPFLEET_TEST_SERVER="$${given:-$${STEPFLEET_TEST_SERVER_TLS:-$$STEPFLEET_TEST_SERVER}}";

.PHONY: help setup build test test-users demo bench bench-compare bench-peers simulate mutants fuzz deaths chaos test-real check \
  chart-readme check-helm check-helm-run check-image check-image-size dashboards check-dashboards \
  check-dashboards-live

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' Makefile | awk -F'|' '{ printf "%-28s %s\n", $$1, $$2 }'

setup: ## find or install the servers that tests, demo and benchmark need (into .tools/)
	@tests/setup.sh

build: ## build everything in debug mode
	cargo build --workspace --all-targets

test: setup ## run every test, on real servers
	cargo build --workspace --all-targets
	@$(WITH_SERVERS) \
	if cargo nextest --version >/dev/null 2>&1; then \
	  echo "cargo nextest run --workspace && cargo test --workspace --doc"; \
	  cargo nextest run --workspace --no-fail-fast && cargo test --workspace --doc; \
	else \
	  echo "cargo test --workspace"; \
	  cargo test --workspace --no-fail-fast; \
	fi

test-users: setup ## the end-to-end tests with a Redis user for each program, of deploy/redis/users.acl
	cargo build --workspace --all-targets
	@$(WITH_SERVERS) STEPFLEET_TEST_USERS=1 cargo test --workspace --test e2e

demo: setup ## a real pipeline on one server, one coordinator and three workers, one of them killed
	cargo build --workspace --bins
	@$(WITH_SERVERS) target/debug/demo

bench: setup ## every figure in a release build; writes target/bench.json; BENCH="--section chains" for a part
	cargo build --release -p stepfleet
	@$(WITH_SERVERS) $(MEASURED_SERVER) target/release/stepfleet bench $(BENCH)

bench-compare: ## what became worse in target/bench.json since the run in BASE=file; fails beyond a tenth
	@test -n "$(BASE)" || { echo "bench-compare: give the report of an earlier run: BASE=file" >&2; exit 2; }
	cargo build --release -p stepfleet
	@target/release/stepfleet bench --compare "$(BASE)"

bench-peers: setup ## the same work with other systems, in turn; PEERS=bullmq,apalis ROUNDS=3 MODES=no,everysec DOCS=1
	@python3 -m unittest discover -q -s tests/peers
	cargo build --release -p stepfleet
	@$(WITH_SERVERS) $(MEASURED_SERVER) STEPFLEET_PROGRAM=target/release/stepfleet \
	  PEERS="$(PEERS)" ROUNDS="$(ROUNDS)" MODES="$(MODES)" DOCS="$(DOCS)" python3 tests/peers/bench.py

simulate: ## whole fleets under simulated time and seeded faults, SEEDS=n seeds, or SEED=n alone
	SEEDS=$(SEEDS) cargo test --release -p stepfleet-coordinator --test simulation

fuzz: ## MINUTES=n minutes of arbitrary and changed input for every decoder
	FUZZ_MINUTES=$(MINUTES) cargo test --workspace --test fuzz -- --nocapture arbitrary

deaths: setup ## how long it takes until the job of a killed worker begins elsewhere, over KILLS=n kills
	cargo build --workspace --all-targets
	@$(WITH_SERVERS) KILLS=$(KILLS) target/debug/deaths

chaos: setup ## every fault on real servers and programs: MINUTES=3 SEED=n TOPOLOGY=all FAULTS=all OLD=path REPORT=1
	cargo build --workspace --bins
	@$(WITH_SERVERS) target/debug/chaos

mutants: ## whether the simulation finds deliberate bugs (MUTANT=name for one, REPORT=1 writes the table)
	CARGO_TARGET_DIR=target/mutants RUSTFLAGS="--cfg stepfleet_mutants" \
	  cargo test -p stepfleet-coordinator --test simulation -- every_mutant_is_caught --nocapture

test-real: setup ## every real workflow graph of WFINSTANCES=folder on a small fleet
	cargo build --workspace --all-targets
	@$(WITH_SERVERS) WFINSTANCES="$(WFINSTANCES)" target/debug/real

check: ## formatting, lints and documentation, every warning an error
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --no-default-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items

chart-readme: ## write the chart's README from its values and their schema
	@tests/helm/check.sh --readme

check-helm: ## the Helm chart, with real Helm 3 and 4 and the schemas of three versions of Kubernetes
	@tests/helm/check.sh

check-helm-run: setup ## start what the chart renders as local processes on a real server, and run its `helm test`
	cargo build --workspace --bins
	@$(WITH_SERVERS) STEPFLEET_PROGRAM=target/debug/stepfleet tests/helm/check.sh --run

check-image: setup ## the images: a linter, and their files run as their entry points say, without a container engine
	cargo build --workspace --bins
	@$(WITH_SERVERS) tests/image/check.sh

check-image-size: setup ## the same with the program built as images have it, which must be small; takes some 15 minutes
	$(IMAGE_PROGRAM)
	@$(WITH_SERVERS) PROGRAM=target/image/stepfleet tests/image/check.sh

dashboards: ## write what Grafana and Prometheus read, from deploy/grafana/source and deploy/prometheus/source
	@python3 deploy/grafana/source/build.py

check-dashboards: ## dashboards, alerts and their runbooks, with a real promtool
	@tests/dashboards/check.sh

check-dashboards-live: setup ## every panel and alert in a real Prometheus that scrapes a real fleet under load
	cargo build --workspace --bins
	@$(WITH_SERVERS) STEPFLEET_PROGRAM=target/debug/stepfleet python3 tests/dashboards/live.py --fleet
