# `make` lists the targets. What each needs beyond Go is installed by `make deps`.

GO      ?= go
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
DOCKER  ?= docker
export DOCKER VERSION

# For make fuzz, make soak and make bench (which tables; all unless given).
FUZZTIME ?= 20s
SOAKTIME ?= 30m
BENCH    ?=

LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## bin/carrick, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/carrick ./cmd/carrick

.PHONY: unit
unit: ## tests that need neither root nor other programs; under a minute
	@RACE= hack/test.sh unit

.PHONY: lint
lint: ## golangci-lint, gofmt, shellcheck
	@hack/test.sh lint

.PHONY: test-history
test-history: ## random histories of simulated hosts, 100,000 operations
	@hack/test.sh history

.PHONY: test-kernel
test-kernel: ## tests on the real kernel, in namespaces of their own (root)
	@hack/test.sh kernel

.PHONY: test-vm
test-vm: ## tests of what kernels may lack, in a virtual machine where this one does (root)
	@hack/test.sh vm

.PHONY: test-sriov
test-sriov: ## virtual functions of a network card that QEMU has (root); make test leaves it out
	@hack/test.sh sriov

.PHONY: test-ipvlan
test-ipvlan: ## three hosts with ipvlan networks, in a virtual machine if need be (root); make test leaves it out
	@hack/test.sh ipvlan

.PHONY: test-integration
test-integration: ## simulated hosts with real engines and a real Consul (root)
	@hack/test.sh integration

.PHONY: test
test: ## all of them; says what ran, what was skipped and why
	@if [ "$$(id -u)" = 0 ]; then hack/deps.sh; else hack/deps.sh --check build test || true; fi
	@hack/test.sh

.PHONY: fuzz
fuzz: ## every fuzz target for FUZZTIME (20s)
	@hack/fuzz.sh $(FUZZTIME)

.PHONY: docs
docs: ## write docs/datapath again, from a real kernel (root)
	$(GO) test -count=1 -run '^TestKernelPages$$' ./datapath -update
	$(GO) test -count=1 -run '^TestPage$$' ./datapath/routed -update
	$(GO) test -count=1 -run '^TestUnderlay$$' ./integration/underlay -update

.PHONY: bench
bench: ## stores, kernels and engines at work, next to other designs (root)
	@hack/bench.sh $(BENCH)

.PHONY: soak
soak: ## 20,000 starts and stops, then random histories for SOAKTIME (30m); drift and leaks counted (root)
	@hack/soak.sh $(SOAKTIME)

.PHONY: up
up: ## a working network on this machine, from nothing (root)
	@hack/up.sh

.PHONY: down
down: ## undo make up (root)
	@hack/up.sh down

.PHONY: lab
lab: ## three simulated hosts with a real Consul, left running to play with (root)
	@hack/deps.sh
	@mkdir -p bin
	@$(GO) build -o bin/lab ./integration/cmd/lab
	@bin/lab up

.PHONY: lab-down
lab-down: ## end make lab
	@$(GO) build -o bin/lab ./integration/cmd/lab
	@bin/lab down

.PHONY: plugin
plugin: build ## the managed plugin carrick/carrick:VERSION in the local engine
	@hack/plugin.sh

.PHONY: tools
tools: ## build Consul, a current engine, runc, docker compose, the linter, a guest's files and a QEMU into the cache
	@tools/install.sh consul dockerd runc compose golangci-lint vm qemu

.PHONY: deps
deps: ## install what building, running and testing needs (Debian 12, root)
	@hack/deps.sh

.PHONY: clean
clean: ## remove what was built here; tools stay in the cache
	rm -rf bin
