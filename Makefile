# `make` lists the targets. All that they build and cache is under target/.

.DEFAULT_GOAL := help
SHELL := /bin/bash

# cargo-deny is built once, from its crate, into target/tools.
CARGO_DENY_VERSION := 0.20.2
CARGO_DENY := target/tools/bin/cargo-deny

BENCH ?= iptables
SIZES_iptables := 100x10 1000x10
SIZES_nftables := 100x10 1000x10 10000x10
SIZES_ipvs := 1000x10 10000x10
SIZES ?= $(SIZES_$(BENCH))
SEED ?= 1
STEPS ?= 400
FUZZ_SECONDS ?= 60

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

.PHONY: build
build: ## Build pointsman-agent and pointsman-operator into target/release
	cargo build --release --package pointsman-agent --package pointsman-operator

.PHONY: demo
demo: packages ## Show everything on a real control plane with three nodes; KEEP=1 leaves it running
	cargo run --release --package pointsman-e2e --bin demo -- $(if $(KEEP),--keep)

.PHONY: unit
unit: ## Run the tests that need neither root nor a cluster (under a minute once built)
	cargo test --workspace --exclude pointsman-e2e --exclude pointsman-dataplane \
		--exclude pointsman-test-kernel --lib --bins --tests
	cargo test --package pointsman-dataplane --lib --test flows_trace
	cargo test --package pointsman-test-kernel --lib

.PHONY: test
test: packages ## Run everything: unit tests, packets in namespaces, a real control plane (root)
	cargo run --package pointsman-e2e --bin e2e-tools
	charts/check.sh
	cargo test --workspace --no-fail-fast

.PHONY: bench
bench: packages ## Measure beside kube-proxy: BENCH=iptables|nftables|ipvs SIZES="100x10 1000x10"
	cargo build --release --package pointsman-e2e --bin bench-inside
	cargo run --release --package pointsman-e2e --bin bench -- --bench $(BENCH) --sizes "$(SIZES)"

.PHONY: differential
differential: packages ## Random clusters for the agent and kube-proxy at once: SEED=1,2 STEPS=400
	cargo run --package pointsman-e2e --bin differential -- --seed $(SEED) --steps $(STEPS)

# libFuzzer's instrumentation, as cargo-fuzz has it without a sanitizer: that works with the stable compiler.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
	-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
	-Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Ccodegen-units=1

.PHONY: fuzz
fuzz: ## Feed random bytes to what reads the kernel's answers: FUZZ_SECONDS=60
	mkdir -p target/fuzz/corpus/netlink
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo run --release --manifest-path fuzz/Cargo.toml --target-dir target/fuzz \
		--target $$(rustc -vV | sed -n 's/^host: //p') --bin netlink -- \
		-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=target/fuzz/ target/fuzz/corpus/netlink

.PHONY: check
check: ## Check format, lints and dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(MAKE) --no-print-directory deny

.PHONY: deny
deny: $(CARGO_DENY)
	$(CARGO_DENY) --log-level error --workspace check bans licenses sources

.PHONY: advisories
advisories: $(CARGO_DENY) ## Check dependencies for known faults (needs the RustSec database on the network)
	$(CARGO_DENY) --workspace check advisories

$(CARGO_DENY):
	@echo "building cargo-deny $(CARGO_DENY_VERSION) (once, about 4 min on two cores) ..." >&2
	cargo install --quiet --locked --root target/tools cargo-deny@$(CARGO_DENY_VERSION)

.PHONY: generate
generate: ## Write the CustomResourceDefinitions again after a change of their Rust types
	cargo run --quiet --package pointsman-crds --bin crdgen -- crds/yaml
	cp crds/yaml/*.yaml charts/pointsman-crds/files/

.PHONY: packages
packages:
	@e2e/packages.sh
