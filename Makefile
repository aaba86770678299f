# What a contributor types. Every step prints one line that says what it does.
#
# All tools are Go programs whose versions go.mod and lint.mod fix, so Go, git and make are enough to begin with. The
# race detector also needs a C compiler.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.ONESHELL:
.NOTPARALLEL:

GO ?= go
BUF := $(GO) tool buf
# golangci-lint has a go.mod of its own: its hundreds of modules shall not take part in choosing the service's versions.
GOLANGCI := $(GO) tool -modfile=lint.mod golangci-lint
# Two packages at a time: several of them start databases and emulators, and some build programs, which takes its time where nothing
# was built before.
TESTFLAGS ?= -p 2 -parallel 4 -timeout 45m
FUZZTIME ?= 30s
# How long the fault campaign is, and the seed to begin with (empty: a fresh one). MINUTES, if given, ends each part early.
SCHEDULES ?= 2000
KILLS ?= 100
REPLICAS ?= 20
SEED ?=
MINUTES ?=
# What `endsession version` says of a build: the tag, or what git makes of its absence, the commit and its date. Empty where
# there is no git (in the container image's build, which is told them).
VERSION ?= $(shell git describe --tags --always --dirty --match 'v*' 2>/dev/null)
COMMIT ?= $(shell git rev-parse HEAD 2>/dev/null)
DATE ?= $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null)
# The time of everything in the archives, as seconds since 1970: the commit's, or what zip can say first.
SOURCE_DATE_EPOCH ?= $(or $(shell git log -1 --format=%ct 2>/dev/null),315619200)
# What releases are built for.
PLATFORMS ?= linux/amd64 linux/arm64 darwin/amd64 darwin/arm64 windows/amd64 windows/arm64
# The same source gives the same bytes, wherever it is built: no path, no state of a checkout, no C compiler is in it.
RELEASE_BUILD = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
  -ldflags '-s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT) -X main.date=$(DATE)'
# What `make bench` measures instead of everything, and where it writes; see bin/bench -help.
BENCHFLAGS ?=
# What `make breaking` compares the contract with.
AGAINST ?= main

# The .proto files that ours import; see proto/deps-gen.
DEPS := proto/deps/buf/validate/validate.proto

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

.PHONY: build
build: ## build bin/endsession
	@echo "==> build: bin/endsession"
	$(RELEASE_BUILD) -o bin/endsession ./cmd/endsession

# It needs GNU tar, gzip and zip. File by file what goes into the archives is fixed: order, owner, mode and time.
.PHONY: release
release: ## build dist/: an archive for each of PLATFORMS (all six), and SHA256SUMS
	@echo "==> release $(VERSION): dist/"
	rm -rf dist
	mkdir dist
	for platform in $(PLATFORMS); do
	  os=$${platform%/*} arch=$${platform#*/} exe=
	  if [ "$$os" = windows ]; then exe=.exe; fi
	  name=endsession_$(VERSION)_$${os}_$${arch}
	  echo "==> $$name"
	  mkdir dist/$$name
	  GOOS=$$os GOARCH=$$arch $(RELEASE_BUILD) -o dist/$$name/endsession$$exe ./cmd/endsession
	  cp README.md LICENSE dist/$$name
	  if [ "$$os" = linux ]; then cp deploy/systemd/endsession.service deploy/systemd/endsession.yaml dist/$$name; fi
	  chmod 644 dist/$$name/*
	  chmod 755 dist/$$name dist/$$name/endsession$$exe
	  TZ=UTC find dist/$$name -exec touch -h -d @$(SOURCE_DATE_EPOCH) {} +
	  if [ "$$os" = windows ]; then
	    (cd dist && find $$name | LC_ALL=C sort | TZ=UTC zip -q -X -9 $$name.zip -@)
	  else
	    tar -C dist --sort=name --format=ustar --owner=0 --group=0 --numeric-owner -c $$name | gzip -n -9 >dist/$$name.tar.gz
	  fi
	  rm -r dist/$$name
	done
	cd dist
	sha256sum endsession_* >SHA256SUMS

.PHONY: demo
demo: ## three emulators, people signed in, one of them signed out everywhere
	@echo "==> demo: emulators and the gateway on loopback"
	$(GO) run ./cmd/endsession demo

.PHONY: test
test: lint verify test-race test-allocations ## everything: lint, generated code, all tests with the race detector

# What has a baseline of allocations in its testdata.
ALLOCATING := ./server ./server/gateway ./server/identity ./server/store/sqlite

# The race detector allocates, too.
.PHONY: test-allocations
test-allocations:
	@echo "==> go test, without the race detector: what hot paths allocate"
	$(GO) test -count=1 -run '^TestAllocations$$' $(ALLOCATING)

.PHONY: allocations
allocations: ## measure anew what hot paths allocate: the baselines of make test
	@echo "==> allocations: write testdata/allocations.json"
	$(GO) test -count=1 -run '^TestAllocations$$' $(ALLOCATING) -update-allocations
	git --no-pager diff --stat -- '*/testdata/allocations.json'

.PHONY: test-race
test-race: cc
	@if [ -n "$$(command -v $$($(GO) env CC) || true)" ]; then
	  echo "==> go test, with the race detector"
	  CGO_ENABLED=1 $(GO) test -race $(TESTFLAGS) ./...
	elif [ "$${CI:-}" = true ]; then
	  echo "==> go test: no C compiler, so no race detector; in CI that is a failure" >&2
	  exit 1
	else
	  echo "==> go test, WITHOUT the race detector: it needs a C compiler (gcc or clang), and there is none"
	  CGO_ENABLED=0 $(GO) test $(TESTFLAGS) ./...
	fi

.PHONY: test-fast
test-fast: ## all tests, without race detector and lint
	@echo "==> go test"
	$(GO) test $(TESTFLAGS) ./...

# Installs a C compiler where that needs no question: as root on a machine with apt.
.PHONY: cc
cc:
	@if [ -z "$$(command -v $$($(GO) env CC) || true)" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	  echo "==> install a C compiler, for the race detector"
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qqy --no-install-recommends gcc libc6-dev ||
	    echo "could not install one" >&2
	fi

.PHONY: lint
lint: $(DEPS) ## gofmt, go vet, golangci-lint, buf lint
	@echo "==> gofmt"
	files=$$(gofmt -l .)
	[ -z "$$files" ] || { echo "gofmt would change:"; echo "$$files"; exit 1; } >&2
	echo "==> go vet"
	$(GO) vet ./...
	echo "==> golangci-lint (its first build on a machine takes minutes)"
	$(GOLANGCI) run
	echo "==> buf lint and format"
	$(BUF) lint
	$(BUF) format --diff --exit-code --path proto/endsession

.PHONY: generate
generate: $(DEPS) ## write gen/ from proto/, and the configuration's reference and schema from its types
	@echo "==> generate gen/ from proto/"
	rm -rf gen/endsession gen/openapi/endsession.openapi.json
	$(BUF) generate
	echo "==> generate docs/configuration.md and docs/configuration.schema.json"
	$(GO) test ./cmd/endsession -count 1 -run '^TestConfigurationIsDocumented$$' -update-docs

.PHONY: verify
verify: $(DEPS) ## fail if gen/ is not what proto/ generates
	@echo "==> verify: gen/ is what proto/ generates"
	tmp=$$(mktemp -d)
	trap 'rm -rf "$$tmp"' EXIT
	$(BUF) generate --output "$$tmp"
	diff -r --exclude=openapi.go gen "$$tmp/gen" || { echo "gen/ is stale: run make generate" >&2; exit 1; }

# It is not part of `test`: a change that breaks callers can be meant, until the first release.
.PHONY: breaking
breaking: $(DEPS) ## compare the contract with that of main (AGAINST=some-commit)
	@echo "==> buf breaking: this contract can be used by those who know that of $(AGAINST)"
	tmp=$$(mktemp -d)
	trap 'rm -rf "$$tmp"' EXIT
	git archive $(AGAINST) buf.yaml proto | tar -x -C "$$tmp"
	cp -r proto/deps "$$tmp/proto/deps"
	$(BUF) breaking --against "$$tmp"

.PHONY: fuzz
fuzz: ## run every fuzz test for FUZZTIME (30s)
	@echo "==> fuzz: every fuzz test for $(FUZZTIME)"
	for pkg in $$($(GO) list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...); do
	  for fuzz in $$($(GO) test -list '^Fuzz' "$$pkg" | grep '^Fuzz' || true); do
	    echo "==> fuzz $$pkg $$fuzz"
	    $(GO) test -run '^$$' -fuzz "^$$fuzz\$$" -fuzztime $(FUZZTIME) "$$pkg"
	  done
	done

# Where the network reaches the Go vulnerability database. It is not part of `test`: what it finds depends on the day.
.PHONY: vuln
vuln: ## look the dependencies up in the Go vulnerability database
	@echo "==> govulncheck"
	$(GO) run golang.org/x/vuln/cmd/govulncheck@latest ./...

# The test binary runs by itself, so that what it counts is seen while it runs.
.PHONY: chaos
chaos: ## random faults, crashes and kills (SCHEDULES=2000 KILLS=100 REPLICAS=20 SEED= MINUTES=)
	@echo "==> chaos: $(SCHEDULES) schedules in virtual time, $(KILLS) kills of real processes, $(REPLICAS) rounds with replicas on"
	@echo "    PostgreSQL; see docs/reliability.md"
	tmp=$$(mktemp -d)
	trap 'rm -rf "$$tmp"' EXIT
	$(GO) test -c -o "$$tmp/chaos.test" ./cmd/endsession
	cd cmd/endsession
	CHAOS_SCHEDULES=$(SCHEDULES) CHAOS_KILLS=$(KILLS) CHAOS_REPLICAS=$(REPLICAS) CHAOS_SEED=$(SEED) CHAOS_MINUTES=$(MINUTES) \
	  "$$tmp/chaos.test" -test.run '^TestChaos' -test.timeout 6h

# It builds the program that is all of it: the gateway, the bare fan-out, and the upstreams, each in a process of its own.
.PHONY: bench
bench: ## measure the gateway beside a bare fan-out, and write docs/performance.md (BENCHFLAGS='-only compare -rounds 1')
	@echo "==> bench: a quarter of an hour on two cores; see docs/performance.md"
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/bench ./cmd/bench
	# By custom that is on a disk, where /tmp often is not.
	TMPDIR=$${TMPDIR:-/var/tmp} bin/bench $(if $(BENCHFLAGS),$(BENCHFLAGS),-json bench.json -markdown docs/performance.md)

.PHONY: clean
clean: ## remove what was built
	@echo "==> clean"
	rm -rf bin dist proto/deps coverage.out bench.json

$(DEPS): go.mod proto/deps-gen/main.go
	@echo "==> print the .proto files that ours import"
	$(GO) run ./proto/deps-gen proto/deps
	touch $@
