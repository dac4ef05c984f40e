# orch: see README.md. `make help` lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
COMMIT  ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE    ?= $(shell git show -s --format=%cI HEAD 2>/dev/null)
GO      ?= go
STATICCHECK := v0.8.2
CMDLINE := github.com/septemberai/orch/internal/cmdline
LDFLAGS := -s -w -X $(CMDLINE).version=$(VERSION) -X $(CMDLINE).commit=$(COMMIT) -X $(CMDLINE).date=$(DATE)

BIN := bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## List the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-zA-Z_-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## Build bin/orch, bin/orch-quota and bin/orch-brain, which are deployed, and bin/reference-engine
	@mkdir -p $(BIN)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/orch ./cmd/orch
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/reference-engine ./cmd/reference-engine
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/orch-quota ./cmd/orch-quota
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $(BIN)/orch-brain ./cmd/orch-brain

# The Terraform provider is a module of its own, so that the service does not depend on
# Terraform's framework.
PROVIDER := terraform/provider

.PHONY: provider
provider: ## Build bin/terraform-provider-orch
	@mkdir -p $(BIN)
	cd $(PROVIDER) && CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION:v%=%)' -o $(CURDIR)/$(BIN)/terraform-provider-orch .

# A separate executable that is not deployed, because it can build, run and remove
# programs on a machine.
.PHONY: build-dev
build-dev: build ## Build bin/orch-dev, too, which the next three targets run
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN)/orch-dev ./cmd/orch-dev

.PHONY: tools
tools: build-dev ## Find or build nomad, consul and vault (about 12 minutes the first time, on two cores)
	$(BIN)/orch-dev tools

.PHONY: dev
dev: build-dev ## Run everything on this machine: real agents, the service, a demo engine
	$(BIN)/orch-dev dev

.PHONY: demo
demo: build-dev ## Run one engine from provision to destroy, and check every step
	$(BIN)/orch-dev demo

.PHONY: test
test: ## Run all tests, against real agents
	$(GO) vet ./...
	cd $(PROVIDER) && $(GO) vet ./... && $(GO) test -race -shuffle=on -count=1 ./...
	$(GO) test -race -vet=off -shuffle=on -count=1 -timeout 40m ./...
	cd tools/release && $(GO) vet ./... && $(GO) test -shuffle=on -count=1 ./...

# SEED=n repeats the order of the faults of the run that printed n.
.PHONY: chaos
chaos: ## Kill, pause and disconnect every process for 8 minutes (FOR), and check that nothing is lost; as root
	$(GO) test -race -count=1 -timeout 15m -v ./internal/chaos -chaos.race -chaos.for=$(or $(FOR),8m) -chaos.seed=$(or $(SEED),0)

.PHONY: soak
soak: ## Call a service for an hour (FOR) while its tokens of 2 minutes and all certificates of 10 minutes are replaced
	$(GO) test -race -count=1 -timeout 80m -v ./internal/e2e/cli -run TestSoak -soak.for=$(or $(FOR),60m)

# Built from its module; with empty caches that takes 4 minutes on two cores.
LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.PHONY: lint
lint: ## Check formatting, go vet, staticcheck and golangci-lint
	@test -z "$$(gofmt -l .)" || { gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags faultpoints ./internal/fault
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...
	$(GO) run $(LINT) run ./...
	cd $(PROVIDER) && $(GO) vet ./... && $(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./... && $(GO) run $(LINT) run ./...
	cd tools/release && $(GO) run $(LINT) run ./...
	cd tools/screenshots && $(GO) vet . && $(GO) run $(LINT) run ./...

.PHONY: vuln
vuln: ## Look for known vulnerabilities that the code can reach
	tools/vuln.sh

.PHONY: docs
docs: ## Generate docs/configuration.md, docs/cli.md and docs/metrics.md; a test fails if one is outdated
	$(GO) generate ./internal/config ./cmd/orch/internal/commands ./internal/contract

.PHONY: docs-terraform
docs-terraform: ## Generate terraform/provider/docs, for which terraform is needed; a test fails if they are outdated
	tools/terraform-docs.sh

.PHONY: fuzz
fuzz: ## Run each fuzz target for a limited time (FUZZTIME, default 20s)
	./tools/fuzz.sh $(or $(FUZZTIME),20s)

.PHONY: bench
bench: build ## Compare orch with Nomad, docker and a script, measure snapshots and the scale curve, and print both reports (an hour; as root)
	$(GO) run ./bench
	$(GO) run ./bench -only scale

.PHONY: engine-image
engine-image: ## Build the container images of the reference engine and of orch-brain (needs a docker engine)
	./cmd/reference-engine/build-image.sh
	./cmd/orch-brain/build-image.sh

# With headless Chromium, which Debian has as the package chromium.
.PHONY: screenshots
screenshots: build-dev ## Make the pictures of Nomad's UI in docs/images (needs chromium)
	cd tools/screenshots && $(GO) run . -dev ../../$(BIN)/orch-dev -out ../../docs/images

# The commit must be checked out without changes. RELEASE has other flags of tools/release.
.PHONY: release
release: ## Build dist/: archives, packages, images, SBOMs, checksums; signed if ORCH_RELEASE_MINISIGN_KEY names a key
	GOTOOLCHAIN=go$$(sed -n 's/^GO_VERSION=//p' deploy/setup.sh) $(GO) run -C tools/release . -root $(CURDIR) -out $(CURDIR)/dist $(RELEASE)

.PHONY: clean
clean: ## Remove what the other targets built, and .dev
	rm -rf $(BIN) .dev dist
