# make          build bin/berth
# make demo     see Berth work: deploy, cold start, scale out, scale to zero
# make test     every test but the slow ones; as root, on Linux
# make check    formatting, vet and the import rules alone
# make conformance        Knative Serving's own conformance tests; make conformance-twice is twice, 8 tests at once
# make soak     two minutes of all that may happen under load, of which no request may fail, and 2,000 streams; SOAK=30m is longer
# make soak-informer      an hour of client-go's informers, writes and restarts; SOAK=10m is another time
# make bench-autoscaler        scaling in virtual time, beside Knative's; TRACE=folder replays files of the Azure Functions 2019 trace
# make bench    every benchmark; make bench-coldstart and so on run one
# make bench-gateway-peers    the gateway beside HAProxy and Caddy too

GO ?= go
BENCH = autoscaler coldstart coldstart-rate services gateway idle burst

.PHONY: all deps demo check test conformance conformance-twice soak soak-informer bench $(BENCH:%=bench-%) bench-gateway-peers

all: bin/berth

bin/berth: FORCE
	@mkdir -p bin
	$(GO) build -o $@ ./cmd/berth

FORCE:

# Installs what Berth needs at run time, and only what is missing.
deps:
	@scripts/deps

demo: deps bin/berth
	@scripts/demo

check:
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo "these files need gofmt -w"; exit 1; }
	$(GO) vet ./...

test: deps check
	@scripts/deps debootstrap ip iptables runc
	$(GO) test -race -timeout 14m ./...

# More flags: make conformance CONFORMANCE='-run TestService -v'. The one set of Go flags keeps one build cache.
conformance: deps bin/berth
	CGO_ENABLED=0 $(GO) test -C test/conformance -trimpath .
	CGO_ENABLED=0 $(GO) build -C test/conformance -trimpath -o $(CURDIR)/bin/conformance/run .
	bin/conformance/run $(CONFORMANCE)

conformance-twice: CONFORMANCE += -parallel 8 -twice
conformance-twice: conformance

soak: SOAK = 2m
soak: deps
	BERTH_SOAK=$(SOAK) $(GO) test -count=1 -timeout 0 -v -parallel 1 -run TestSoak ./e2e

soak-informer: SOAK = 1h
soak-informer: deps
	BERTH_SOAK_INFORMER=$(SOAK) $(GO) test -count=1 -timeout 0 -v -run TestInformer ./e2e

bench: $(BENCH:%=bench-%)

bench-coldstart-rate: deps bin/berth
	$(GO) run ./bench/coldstartrate

bench-coldstart bench-services bench-idle bench-burst: bench-%: deps bin/berth
	$(GO) run ./bench/$*

bench-autoscaler:
	$(GO) run ./bench/autoscaler $(if $(TRACE),-trace $(TRACE))

bench-gateway: deps bin/berth
	@scripts/deps nginx
	$(GO) run ./bench/gateway

bench-gateway-peers: deps
	@scripts/deps nginx haproxy caddy
	$(GO) run ./bench/gateway -peers
