# `make` prints the targets. Each of them is one command that a newcomer can
# also type by hand; nothing is configured here.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The checks, the faults and the costs start real processes and measure time: they
# run by themselves, after the packages' own tests.
# So does sim, with new seeds each time.
PACKAGES = $(shell go list ./... | grep -v '/proof/\(check\|clients\|costs\|fuzzrpc\|abuse\|faults\|inject\|sim\)$$')

.PHONY: help
help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build ./bin/belay
	go build -o bin/belay ./cmd/belay

.PHONY: dev
dev: ## three members on this machine, until Ctrl-C
	go run ./cmd/belay dev

.PHONY: test
test: tools ## all tests, and the checks at their default length
	@set -o pipefail; status=0; \
	go test -timeout 20m $(PACKAGES) || status=1; \
	go test -count=1 -timeout 5m ./proof/costs || status=1; \
	go test -count=1 -timeout 20m ./proof/faults ./proof/inject || status=1; \
	go test -count=1 -timeout 30m -parallel 3 ./proof/check || status=1; \
	go test -count=1 -timeout 30m ./proof/clients || status=1; \
	go test -count=1 -timeout 10m ./proof/fuzzrpc ./proof/abuse || status=1; \
	go test -timeout 30m -v ./proof/sim -sim.budget 40s | grep -v '^=== \|^    --- PASS' || status=1; \
	$(MAKE) --no-print-directory invariants || status=1; \
	exit $$status

.PHONY: short
short: ## the quick tests only
	go test -short -timeout 5m ./...

.PHONY: race
race: ## the packages' own tests under the race detector
	go test -race -short -timeout 15m $(PACKAGES) ./proof/faults ./proof/inject

# The packages with a file invariants.go: what they keep twice is compared after
# each change. See internal/invariants.
.PHONY: invariants
invariants: ## the costly asserts: the tests of the packages that have some, and a short simulation
	go test -count=1 -short -timeout 10m -tags invariants ./state ./mvcc ./lease ./watch ./raftlog
	go test -count=1 -timeout 10m -tags invariants ./proof/sim -run '^TestSim$$' -sim.budget 10s

.PHONY: lint
lint: ## floors, gofmt, vet, staticcheck, what must not enter git
	BELAY_STATICCHECK=1 go test -count=1 ./internal/lint

.PHONY: check
check: tools ## real processes against etcd: differential, kill -9, bad input, clients
	go test -count=1 -timeout 30m -v ./proof/check

.PHONY: rules
rules: tools ## `belay doctor rules` and dashboard under a real Prometheus, over etcd and Belay that are well, and are not
	BELAY_RULES=1 go test -count=1 -timeout 30m -v -run 'TestDoctorRules$$' ./proof/check

.PHONY: follow
follow: tools tools-old ## `belay doctor follow` on Belay and each etcd from 3.4 on: a move, a pause, a kill, the loss of all members
	BELAY_FOLLOW=1 go test -count=1 -timeout 30m -v -run 'TestDoctorFollow' ./proof/check

.PHONY: devfaults
devfaults: ## delays, losses and slow disks by `belay dev fault`: the verdict names each, and nothing else afterwards
	BELAY_DEVFAULTS=1 go test -count=1 -timeout 30m -v -run 'TestDevFault' ./proof/check

.PHONY: clients
clients: tools ## programs that no one here wrote, all of them: Kubernetes' storage, etcdctl, npm's etcd3, CoreDNS, Patroni (CLIENTS='-run TestNode' for some)
	BELAY_CLIENTS=all go test -count=1 -timeout 60m -v ./proof/clients $(CLIENTS)

.PHONY: etcd-tests
etcd-tests: tools tools-old ## etcd's own end-to-end tests against Belay, with etcd's tools and with Belay's, on a machine that is not busy (ETCD_TESTS=TestAlarm for some)
	BELAY_ETCD_TESTS=$${ETCD_TESTS:-.} go test -count=1 -timeout 180m -v -run '^TestEtcdsOwnTests$$' ./proof/clients

.PHONY: etcd-robustness
etcd-robustness: tools tools-old ## etcd's robustness tests against Belay, directly, through proxies and with large values, in ROUNDS (1), and that they notice broken rules (ROBUSTNESS=Exploratory/KubernetesHighTraffic/ClusterOfSize3 for some)
	BELAY_ETCD_ROBUSTNESS=$${ROUNDS:-1} BELAY_ETCD_ROBUSTNESS_RUN=$$ROBUSTNESS go test -count=1 -timeout 0 -v -run '^TestEtcdsRobustness' ./proof/clients

.PHONY: etcd-integration
etcd-integration: ## etcd's own integration tests with members of Belay in their process, on a machine that is not busy (ETCD_TESTS=TestV3Lease for some)
	BELAY_ETCD_INTEGRATION=$${ETCD_TESTS:-.} go test -count=1 -timeout 180m -v -run '^TestEtcdsIntegrationTests$$' ./proof/clients

.PHONY: kill
kill: tools ## 50 rounds of kill -9 of each member and of all, on three and on one
	BELAY_KILL_ROUNDS=50 go test -count=1 -timeout 60m -v -run 'TestKill(Three|One)$$' ./proof/check

.PHONY: proxy
proxy: tools ## members and proxies killed in 20 rounds under watches, reads and writes, and all of etcdctl through proxies
	BELAY_PROXY_ROUNDS=20 go test -count=1 -timeout 60m -v -run 'TestProx' ./proof/check
	go test -count=1 -timeout 20m -run TestModel ./cli/proxy/merge -merge.runs 50000
	go test -count=1 -timeout 20m -run TestModel ./cli/proxy/cache -cache.runs 20000

.PHONY: proxy-costs
proxy-costs: tools ## readers, leases and connections through `belay proxy` and `etcd grpc-proxy`, in turn: CPU, memory, latency (ulimit -n 20000)
	BELAY_PROXY_COSTS=3 BELAY_PROXY_CONNECTIONS=20000 go test -count=1 -timeout 60m -v -run 'TestProxyCo' ./proof/check

.PHONY: move
move: tools tools-old ## the members of running etcds of 3.5, 3.6 and 3.7 become Belay one by one and go back, under load, with kill -9 in each step
	BELAY_MOVE=1 go test -count=1 -timeout 90m -v -run 'TestMove|TestMemberReplace|TestMigrateKilled' ./proof/check

.PHONY: heal
heal: ## a member of three that heals: killed before each step of it, and each of its files altered and deleted, under load
	BELAY_HEAL=all go test -count=1 -timeout 20m -v -run 'TestHealKilledAtEachStep$$' ./node
	BELAY_HEAL=all go test -count=1 -timeout 60m -v -run 'TestHeal' ./proof/check

.PHONY: webview
webview: ## the web view in headless Chromium, wide and on a phone, with TLS and users; pictures in WEBVIEW (/tmp/belay-webview)
	BELAY_WEBVIEW=$${WEBVIEW:-/tmp/belay-webview} go test -count=1 -timeout 15m -v -run '^TestWebView' ./proof/check

.PHONY: faults
faults: tools ## the table of faults on real members, Belay beside etcd (FAULTS='-rows leader-slow' for some)
	go run ./proof/faults $(FAULTS)

.PHONY: abuse
abuse: tools ## the table of attacks on real members, Belay beside etcd (ABUSE='-attacks peer-*' for some)
	go run ./proof/abuse $(ABUSE)

.PHONY: verdicts
verdicts: tools ## each fault once, labelled: how many verdicts name the right member and cause (VERDICTS='-rows leader-*')
	go run ./proof/faults -verdicts $(VERDICTS)

.PHONY: labelled
labelled: tools ## incidents of known cause on real members, kept, and how often what is said of them is right (LABELLED='-dir /tmp/set -kind belay -n 300 -seed 1')
	go run ./proof/labelled $(LABELLED)

.PHONY: sim
sim: ## members in one process, everything broken: SEED=n, HOURS=h of virtual time, SIM='-sim.runs 20'
	go test -count=1 -timeout 0 -v -run '^TestSim$$' ./proof/sim \
	  $(if $(SEED),-sim.seed=$(SEED)) $(if $(HOURS),-sim.hours=$(HOURS)) $(SIM)

.PHONY: mutations
mutations: ## rules of the code left out one by one: the simulation must notice each (make test tries a quarter of them, another each day)
	BELAY_MUTATIONS=all go test -count=1 -timeout 60m -v ./proof/sim -run '^TestMutations$$'

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME (10s) each
	@set -e; for p in $$(go list ./...); do \
	  for f in $$(go test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "$$p $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-10s} $$p; \
	  done; \
	done

.PHONY: fuzz-rpc
fuzz-rpc: ## random messages, valid and broken, to every method of three members, for FUZZTIME (1h) (SEED=n for the messages of a run)
	BELAY_FUZZ_TIME=$${FUZZTIME:-1h} $(if $(SEED),BELAY_FUZZ_SEED=$(SEED)) go test -count=1 -timeout 0 -v ./proof/fuzzrpc

.PHONY: frames
frames: ## random sequences of frames, valid and broken, to Belay's own gRPC server and to grpc-go's, for FRAMESTIME (10m): the same answers
	BELAY_FRAMES_TIME=$${FRAMESTIME:-10m} go test -count=1 -timeout 0 -v -run '^TestFramesLikeGRPC$$' ./rpc

.PHONY: interop
interop: tools ## Belay's own gRPC server under h2spec, gRPC's interoperability client, and Python's gRPC
	BELAY_INTEROP=1 go test -count=1 -timeout 60m -v -run 'TestH2Spec|TestInteropClient' ./rpc
	BELAY_CLIENTS=all go test -count=1 -timeout 30m -v -run TestPython ./proof/clients

.PHONY: reports
reports: tools ## what users of etcd reported, and odd requests in every state of a cluster, told to Belay and to etcd: equal answers (STORY='no_quorum')
	BELAY_REPORTS=1 go test -count=1 -timeout 60m -v ./proof/check -run '^TestReports$$$(if $(STORY),/^$(STORY)$$)'

.PHONY: three
three: tools ## REQUESTS (5000) random requests to three members of Belay and of etcd in turn, with kills, stops and moves of the leader: equal answers
	BELAY_THREE=$${REQUESTS:-5000} go test -count=1 -timeout 30m -v ./proof/check -run '^TestDifferentialThree$$'

.PHONY: soak
soak: ## three members over Belay's own gRPC server under all kinds of calls for SOAK (1h), with kills, stops and new certificates
	BELAY_SOAK=$${SOAK:-1h} go test -count=1 -timeout 0 -v -run '^TestSoak$$' ./proof/check

.PHONY: memory
memory: tools ## as root: a member in a cgroup of 512 MiB with 300,000 keys under 100 full ranges beside a light writer, etcd's and Belay's
	BELAY_MEMORY=1 go test -count=1 -timeout 30m -v -run '^TestMemory$$' ./proof/check

.PHONY: bench
bench: tools ## Belay beside etcd, all cases (BENCH='-cases put* -nodes 1' for some)
	go run ./proof/bench $(BENCH)

.PHONY: growth
growth: tools ## curves of Belay beside etcd by keys, connections, leases and what a member has missed, with pictures into docs/growth (GROWTH='-growth keys -most 50000000')
	go run ./proof/bench -growth all $(GROWTH)

.PHONY: tools
tools: ## build real etcd, etcdctl and etcdutl once, into the user's cache
	@go run ./proof/etcdtools

.PHONY: tools-old
tools-old: ## build etcd 3.4, 3.5 and 3.6 too, into the same cache: what `make older` needs
	@go run ./proof/etcdtools -old

# A server that speaks as S3 does, which others wrote.
VERSITYGW = v1.8.0

.PHONY: s3
s3: ## backups in a bucket of a real server, versitygw, which is built into the user's cache
	@dir=$${XDG_CACHE_HOME:-$$HOME/.cache}/belay-versitygw/$(VERSITYGW); \
	[ -x "$$dir/versitygw" ] || GOBIN="$$dir" go install github.com/versity/versitygw/cmd/versitygw@$(VERSITYGW) || exit 1; \
	BELAY_S3_SERVER="$$dir/versitygw" go test -count=1 -v -run '^TestRealS3$$' ./backup

.PHONY: older
older: tools tools-old ## doctor and util on real etcds of 3.4, 3.5 and 3.6
	BELAY_OLDER=1 go test -count=1 -timeout 30m -v -run '^TestOlder' ./proof/check
