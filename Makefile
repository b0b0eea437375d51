# medway: `make help` lists the targets.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build generate lint test sim fuzz bench demo drills lab lab-shell lab-console lab-status lab-down clean

GO        ?= go
PROGRAMS  := medway-agent medway-coordinator medwayctl medway-lab sbc etcd etcdctl etcdutl
# Static binaries: they also run where the lab's virtual machine has no libc of the same version.
# -buildvcs is for --version, also where the environment turns it off.
BUILD     := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto
LINT_VER  := v2.15.0
LINTER    := .cache/golangci-lint-$(LINT_VER)

help: ## Explain every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Install the Debian packages and the kernel that demo, lab and test need (they do this themselves)
	@scripts/setup.sh

build: ## Build all programs into bin/
	@mkdir -p bin
	@echo "[build] agent, tools, lab (the first time takes minutes)"
	@$(BUILD) -o bin/medway-agent ./agent/cmd/medway-agent
	@# Another build, which the tests upgrade to.
	@$(BUILD) -ldflags "-X github.com/medway-lb/medway/pkg/daemon.version=v0.0.0-other" -o bin/medway-agent-other ./agent/cmd/medway-agent
	@$(BUILD) -o bin/medway-coordinator ./coordinator/cmd/medway-coordinator
	@$(BUILD) -o bin/medwayctl ./coordinator/cmd/medwayctl
	@$(BUILD) -o bin/medway-lab ./integration/lab/cmd/medway-lab
	@$(BUILD) -o bin/sbc ./integration/sbc/cmd/sbc
	@echo "[build] etcd"
	@$(BUILD) -o bin/etcd go.etcd.io/etcd/server/v3
	@$(BUILD) -o bin/etcdctl go.etcd.io/etcd/etcdctl/v3
	@$(BUILD) -o bin/etcdutl go.etcd.io/etcd/etcdutl/v3

generate: ## Make the Go code of proto/ (needs protobuf-compiler and libprotobuf-dev)
	@mkdir -p bin
	@$(BUILD) -o bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
	@$(BUILD) -o bin/protoc-gen-connect-go connectrpc.com/connect/cmd/protoc-gen-connect-go
	protoc --plugin=bin/protoc-gen-go --go_out=. --go_opt=module=github.com/medway-lb/medway \
		--plugin=bin/protoc-gen-connect-go --connect-go_out=. --connect-go_opt=module=github.com/medway-lb/medway \
		-I proto proto/medway/v1/*.proto

lint: $(LINTER) ## Check the code with gofmt, go vet and golangci-lint (built on first use)
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(LINTER) run ./...

$(LINTER):
	@echo "[build] golangci-lint (the first time takes minutes)"
	@GOBIN=$(CURDIR)/.cache $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VER)
	@mv .cache/golangci-lint $@

test: setup build ## Run the tests, those of the kernel and of the lab included; one summary line at the end
	@scripts/test.sh

sim: ## Run the simulator of the switchover rules for SIMTIME (default 10m); a failing schedule is shrunk and printed
	$(GO) test ./pkg/plan/sim -run '^TestSchedules$$' -v -count=1 -timeout 0 -sim.for=$(or $(SIMTIME),10m) -sim.from=$$(date +%s)000000 $(ARGS)

fuzz: ## Run every fuzz target for FUZZTIME (default 30s), with a line of figures each
	@scripts/fuzz.sh

bench: build ## Measure medway beside etcd, GoBGP, ExaBGP and Keepalived: about 15 minutes; docs/benchmarks.md (ARGS="native --flips 50")
	@scripts/setup.sh bench
	@$(BUILD) -o bin/medway-bench ./integration/bench/cmd/medway-bench
	@CGO_ENABLED=0 $(GO) test -c -trimpath -o bin/medway-agent-on-fakes ./agent
	@scripts/bench.sh $(ARGS)

demo: setup build ## Move live calls from one data centre to the other and back, and draw it (ARGS="--sabotage tee" must fail)
	@scripts/demo.sh $(ARGS)

drills: setup build ## Make everything fail that may fail, one after the other, under calls: about 20 minutes; NAMES="host-dies" is only that
	@scripts/drills/all.sh $(NAMES)

lab: setup build ## Start the lab and leave it running
	@scripts/lab.sh up

lab-shell: ## A shell on a node of the running lab: make lab-shell NODE=dc1-lvs-a
	@scripts/lab.sh shell $(NODE)

lab-console: ## Start coordinators in the running lab, and open their console to this machine's browsers
	@scripts/lab.sh console

lab-status: ## Daemons, BGP sessions and routes of the running lab
	@scripts/lab.sh status

lab-down: ## End the lab and what it runs in
	@scripts/lab.sh down

clean: lab-down ## Remove all that was built or downloaded into this folder
	rm -rf bin .cache
