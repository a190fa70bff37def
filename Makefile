# Postbook. `make` lists what there is to do; `make run` and `make test` are all
# that a fresh machine needs.

SHELL := /bin/bash
.DEFAULT_GOAL := help
DATA  ?= ./.postbook
PKGS  ?= ./...

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-12s %s\n", $$1, $$2}'

.PHONY: run
run: need-run ## Start Postbook, send a first mail, and leave it running
	go build -o bin/postbook ./cmd/postbook
	POSTBOOK_DATA_DIR=$(DATA) exec bin/postbook dev

.PHONY: build
build: ## Build bin/postbook
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -o bin/ ./cmd/postbook ./cmd/postbook-proof

.PHONY: test
test: need-test ## Run all tests, on real PostgreSQL, NATS, DNS, SMTP and a browser (minutes)
	go vet $(PKGS)
	go test -json -timeout 14m $(PKGS) | go run ./internal/testcount

.PHONY: test-race
test-race: need-test ## Run all tests with the race detector, in the program that they start as well
	GOFLAGS="$(GOFLAGS) -race" go test -json -timeout 30m $(PKGS) | go run ./internal/testcount

.PHONY: test-long
test-long: need-test ## Run the suites that take long (an hour or two): kills by the fifty, tampering and crashes by the thousand
	POSTBOOK_TEST_LONG=1 go test -json -tags conformance -timeout 150m ./cmd/postbook ./archive ./eventstore ./forensics ./notary ./workers | go run ./internal/testcount

.PHONY: fuzz
fuzz: ## Fuzz each parser for 30 seconds
	@set -e; for p in $$(grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -rhoE '^func Fuzz[A-Za-z]+' $$p/*_test.go | cut -d' ' -f2); do \
	    echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f\$$" -fuzztime 30s $$p; done; done

.PHONY: bench
bench: need-test build ## Measure, and print each figure beside its limit
	bin/postbook bench

.PHONY: bench-scale
bench-scale: need-test build ## Measure what grows with the log, at 1 and 10 million events (15 GB of disk, an hour)
	bin/postbook bench scale

.PHONY: generate
generate: ## Write docs/events.md and the events' JSON Schemas
	go run ./cmd/postbook catalogue

.PHONY: lint
lint: ## Run the linters
	go tool -modfile=tools/go.mod golangci-lint run

.PHONY: fmt
fmt: ## Format the code
	go tool -modfile=tools/go.mod golangci-lint fmt

.PHONY: vuln
vuln: ## Look for known vulnerabilities (needs the vulnerability database)
	go tool -modfile=tools/go.mod govulncheck ./...

.PHONY: check
check: lint test ## What a change has to pass

.PHONY: clean
clean: ## Remove what was built, and the data of `make run`
	rm -rf bin $(DATA)

.PHONY: need-run need-test
need-run need-test: need-%:
	@scripts/need.sh $*
