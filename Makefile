# vfsprobe: `make run` shows it at work, `make test` runs everything that can run here.
# `make help` lists what else there is: each target with its text after ##.

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS  := -s -w -E vfsprobe_start -X main.version=$(VERSION)
FUZZTIME ?= 1s

# All that is compiled is compiled alike, so that tests, linters and releases share it. Only the
# race detector takes cgo.
export CGO_ENABLED = 0
export GOFLAGS = -trimpath

SOURCES  := $(shell find cmd internal plugins -name '*.go' -o -name sample.conf) go.mod go.sum

.PHONY: help quick steady run build bpf check-bpf test test-long prepare compile-tests test-alone test-others test-race test-loop test-machines test-systemd test-e2e test-containers test-kubernetes test-vm test-nfs test-kernels test-arm64 package release verify-release check-release setup lint race fuzz faults faults-nfs privileges bench gathers soak vuln dashboards manifests record fleet pictures clean

run: build ## build it, and print one gather on this machine
	bin/vfsprobe -test

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][-a-z0-9]*:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: bin/vfsprobe ## build bin/vfsprobe

# Static and not position independent: the fork server's trimming is at its best so.
bin/vfsprobe: $(SOURCES) .git/HEAD
	$(GO) build -trimpath -buildmode=exe -ldflags "$(LDFLAGS)" -o $@ ./cmd/vfsprobe

# Compiles the BPF programs. Their objects are committed: nothing else needs clang.
BPF_NEEDS := clang-19 llvm-19:llvm-strip-19
bpf: ## compile the BPF programs anew, whose objects are committed
	tools/setup $(BPF_NEEDS)
	tools/bpf

check-bpf: ## compile them, and compare with what is committed
	tools/setup $(BPF_NEEDS)
	tools/bpf -check

# Runs tests, and ends with a list of those that could not run here, and why.
# $(call gotest,NAME) notes what each package takes, see tools/stage. Packages that fork
# helpers have PID namespaces of their own: stuck ones of one would be orphans for another.
gotest = "$$($(GO) -C "$(CURDIR)/tools/test" tool -n gotestsum)" --format standard-quiet -- -count 1 -p 1 -vet off -ldflags "-s -w" -timeout 60m -exec "$(CURDIR)/tools/stage $(1)/"
STAGE  = tools/stage $@

# The packages whose tests need most of the CPUs, those that start machines, those
# with file systems on loop devices, which share the kernel's log and its counts of dentries,
# and all others; and what is tested with the race detector: where goroutines are started,
# if only by the tests.
INTERNAL = $(shell $(GO) list -m)/internal
testing  = $(shell $(GO) list -f '{{.ImportPath}} {{.TestImports}} {{.XTestImports}}' ./... | grep '$(INTERNAL)/testing/$(1)[] ]' | cut -d' ' -f1)
ALONE    = $(INTERNAL)/testing/fleet
E2E      = $(INTERNAL)/testing/e2e
SYSTEMD  = $(INTERNAL)/testing/systemd
MACHINES = $(filter-out $(ALONE) $(SYSTEMD),$(call testing,vm))
LOOP     = $(filter-out $(E2E),$(call testing,loopfs))
OTHERS   = $(filter-out $(ALONE) $(E2E) $(SYSTEMD) $(MACHINES) $(LOOP),$(shell $(GO) list ./...))
# The end-to-end tests with such file systems, for one of which the kernel's caches are dropped, or
# with so many dentries that others would count them.
E2ELOOP  = 'TestVfsprobe_(DiskMetrics|ASilentBtrfs|NamesTheCgroup)|TestService_KnowsADangerous|TestDentries'
RACED    = $(filter-out $(INTERNAL)/testing/%,$(shell CGO_ENABLED=1 $(GO) list -race -f '{{.ImportPath}} {{.Dir}}' ./internal/... ./plugins/... | \
	while read -r package dir; do ! grep -qE '^\s*go |\.Go\W|AfterFunc|t\.Parallel' "$$dir"/*.go || echo "$$package"; done))

# Several at a time, since most tests wait most of the time. All run, also where one has failed.
# It ends with a table of where the minutes went. What takes longest begins first, and where few
# parts run at a time other machines come after those of test-nfs. New inputs of fuzz tests are
# test-long's: go test tries those of testdata.
PARTS  = test-nfs test-loop test-others test-race test-machines test-systemd test-e2e test-kernels
LANES ?= $(shell tools/parallel 4 2)
test: ## all tests that can run here, and lint: what CI runs
	@tools/stage -new
	@tools/stage setup $(MAKE) --no-print-directory setup
	@code=0; $(MAKE) --no-print-directory prepare & $(MAKE) --no-print-directory test-alone || code=$$?; wait $$! || exit; \
		$(MAKE) --no-print-directory -k -j$(LANES) VMS=$(VMS) SUITES=bookworm SKIPPED=0 $(PARTS) || code=$$?; \
		tools/stage; exit $$code

# What takes the CPUs only. It leaves most of them to the tests beside it.
prepare:
	@for part in lint check-bpf check-release compile-tests; do nice -n 5 tools/stage $$part $(MAKE) --no-print-directory $$part || exit; done

# A failure tells of a fault, or of a test that asserts more than a loaded machine keeps.
PACKAGES ?= ./...
bin/steady: $(wildcard tools/steady/*.go)
	$(GO) build -o $@ ./tools/steady
steady: bin/steady ## each test with a time in it, 20 times alone beside a load of 2: PACKAGES, RUN=EXPRESSION
	@code=0; bin/steady -run '$(RUN)' $(PACKAGES) || code=$$?; \
	for module in $(if $(filter ./...,$(PACKAGES)),dashboards kubernetes); do \
		(cd tools/$$module && "$(CURDIR)/bin/steady" -run '$(RUN)' ./...) || code=$$?; done; \
	echo 'not run, as they are no tests of Go: the scenarios of NFS (make test-nfs), Debian kernels (make test-kernels)'; exit $$code

quick: ## lint and the unit tests of what was changed, in two minutes
	tools/quick

# Compiles all that tests are made of, without linking it, and builds the programs that they run:
# a compiler beside them takes the CPUs from helpers that have their time.
compile-tests: bin/nfsvm bin/kernels
	-$(GO) run ./internal/testing/programs/all
	$(GO) -C tools/test tool -n gotestsum >/dev/null
	$(GO) list -test -deps -export ./... >/dev/null
	$(GO) -C tools/dashboards list -test -deps -export ./... >/dev/null
	CGO_ENABLED=1 $(GO) list -race -test -deps -export $(RACED) >/dev/null

test-alone:
	$(call gotest,alone) $(ALONE)

test-machines:
	$(call gotest,machines) $(MACHINES)

test-systemd:
	$(call gotest,systemd) $(SYSTEMD)

test-loop:
	$(call gotest,loop) $(LOOP); code=$$?; $(call gotest,loop) -run $(E2ELOOP) $(E2E) && exit $$code
	$(RACE) $(filter $(LOOP),$(RACED))

test-e2e:
	$(call gotest,e2e) -parallel 4 -skip $(E2ELOOP) $(E2E)

test-others:
	$(call gotest,others) $(OTHERS); code=$$?; cd tools/dashboards && $(call gotest,others) ./... && exit $$code

test-race:
	$(RACE) $(filter-out $(LOOP),$(RACED))
	$(RACESOAK)

# The image under Podman, Docker and containerd, with all runtimes and both versions of
# cgroups. "make test" has one of each kind.
test-containers: ## the image under Podman, Docker and containerd
	tools/setup podman crun runc gcc qemu-user:qemu-aarch64
	tools/engines
	VFSPROBE_RUNTIMES=all $(call gotest,containers) -timeout 40m ./internal/testing/containers
	-@tools/setup mmdebstrap
	VFSPROBE_RUNTIMES=all $(call gotest,containers) -run 'TestSystemd_(Containers|AppArmor)' ./internal/testing/systemd

# And what takes hours: CI's long mode.
test-long: test ## and what takes hours: a soak, long hangs, long fuzzing
	$(MAKE) --no-print-directory soak
	VFSPROBE_BLOCKED=1m $(call gotest,long) -run TestTelegraf_IsStopped ./internal/testing/e2e
	-@tools/setup $(KERNEL_NEEDS) qemu-system-x86:qemu-system-x86_64
	VFSPROBE_HANG=10m VFSPROBE_RESTARTS=5 $(call gotest,long) -timeout 40m ./internal/testing/systemd
	cd tools/dashboards && VFSPROBE_VICTORIAMETRICS=1 $(call gotest,long) -run TestRules_OnVictoriaMetrics ./alerts
	cd tools/dashboards && VFSPROBE_FLUX=1 $(call gotest,long) -run TestPanels .
	$(MAKE) --no-print-directory test-kubernetes
	VFSPROBE_FLEET=130s $(call gotest,long) ./internal/testing/fleet
	GATHERS=10000 $(call gotest,long) -timeout 2h -run TestMountstat_MemoryDoesNotGrow ./plugins/inputs/mountstat
	cd tools/dashboards && VFSPROBE_STALL=1 VFSPROBE_ORDINARY=20m $(call gotest,long) -timeout 40m -run 'TestStory_Stall|TestStory_OrdinaryWork' .
	$(MAKE) --no-print-directory bin/bench
	GATHERS=100000 bin/bench idle
	VFSPROBE_SOCKETS=100000 $(call gotest,long) -run TestTable_AmongManySockets ./internal/sockdiag
	$(MAKE) --no-print-directory test-containers
	$(MAKE) --no-print-directory test-vm FAMILIES="layers autofs ceph gluster krb5 s3 webdav"
	$(MAKE) --no-print-directory test-nfs KERNEL=bookworm
	$(MAKE) --no-print-directory fuzz FUZZTIME="-cpu 600"
	-$(MAKE) --no-print-directory vuln

# The chart in a cluster of one node; a part of "make test-long". Kubernetes is built from its
# sources, which takes minutes the first time.
test-kubernetes: ## the chart in a real cluster
	tools/setup containerd etcd-server:etcd gcc iproute2:ip libseccomp-dev:/usr/include/seccomp.h pkg-config runc
	VFSPROBE_KUBERNETES=1 $(call gotest,kubernetes) -timeout 30m ./internal/testing/kubernetes
	-@tools/setup mmdebstrap
	VFSPROBE_KUBERNETES=1 $(call gotest,kubernetes) -timeout 40m -run TestSystemd_Kubelet ./internal/testing/systemd

# Real NFS faults, in virtual machines: User Mode Linux, or QEMU with ACCEL=kvm
# or ACCEL=tcg. KERNEL=suite has them run the kernel of another Debian, and
# RUN=expression selects scenarios. Where no machine can be started they are
# reported as skipped, and make fails, but not for "make test".
ACCEL   ?= uml
SKIPPED ?= 77
VM_NEEDS_uml := gcc
VM_NEEDS_kvm := qemu-system-x86:qemu-system-x86_64 kmod:depmod
VM_NEEDS_tcg := $(VM_NEEDS_kvm)
VMS     ?= $(shell tools/parallel 3 2)
NFSVM = bin/nfsvm -accel $(ACCEL) $(if $(KERNEL),-kernel $(KERNEL)) -vms $(VMS) -run '$(RUN)'

test-nfs: bin/nfsvm ## NFS faults in virtual machines; RUN=EXPRESSION chooses scenarios
	-@tools/setup mmdebstrap $(VM_NEEDS_$(ACCEL))
	@$(STAGE) $(NFSVM); code=$$?; [ $$code != 77 ] || { echo 'test-nfs: SKIPPED'; code=$(SKIPPED); }; exit $$code

# Mounts of real file servers, and their faults: NFS, SMB and 9P, what lies on SMB, automounts and
# CephFS in virtual machines, GlusterFS, S3 and WebDAV on this host. FAULTS=docs/FAULTS.md writes the tables of all but NFS.
# "make test" has the first two.
FAMILIES ?= nfs smb layers autofs ceph gluster krb5 s3 webdav
FAMILY_NEEDS := mmdebstrap gcc iproute2:ip fuse3:fusermount3
FAMILY_NEEDS_gluster := glusterfs-server:glusterd glusterfs-client:glusterfs
FAMILY_NEEDS_s3 := s3fs
FAMILY_NEEDS_webdav := rclone
test-vm: ## faults of real file servers; FAMILIES="nfs smb layers autofs ceph gluster krb5 s3 webdav" chooses
	-@tools/setup $(FAMILY_NEEDS) $(foreach family,$(FAMILIES),$(FAMILY_NEEDS_$(family)))
	VFSPROBE_FAMILIES="$(filter-out nfs,$(FAMILIES)) -" FAULTS="$(abspath $(FAULTS))" $(GO) test -count 1 -timeout 40m -v ./internal/testing/fileservers
	$(if $(filter nfs,$(FAMILIES)),$(MAKE) --no-print-directory test-nfs)

bin/nfsvm: $(SOURCES) $(shell find internal/testing/nfsvm internal/testing/vm -name '*.scenario' -o -name '*.c')
	$(GO) build -o $@ ./internal/testing/nfsvm

# The BPF programs, and what keeps helpers of other users from being traced, on the kernels of
# Debian's suites, under QEMU.
SUITES ?= bullseye,bookworm,trixie,sid
KERNEL_TESTS := ./internal/dcache/attribution,'./plugins/inputs/dentrycache=TestBinary|TestFreeing_Run','./internal/prober=TestProber_AUserReaches|TestProber_SharesWith'
KERNEL_NEEDS := mmdebstrap kmod:depmod e2fsprogs:mkfs.ext4

test-kernels: bin/kernels ## the BPF programs, and helpers of other users, on Debian's kernels in virtual machines
	-@tools/setup $(KERNEL_NEEDS) qemu-system-x86:qemu-system-x86_64
	@$(STAGE) bin/kernels -suites $(SUITES) -package $(KERNEL_TESTS); code=$$?; [ $$code != 77 ] || { echo 'test-kernels: SKIPPED'; code=$(SKIPPED); }; exit $$code

# On arm64, whose trampolines are newer: these, and the prober, which is told system
# calls by their numbers.
test-arm64: bin/kernels ## those and the prober on arm64
	-@tools/setup $(KERNEL_NEEDS) qemu-system-arm:qemu-system-aarch64
	bin/kernels -arch arm64 -suites bookworm,trixie -timeout 15m \
		-package $(KERNEL_TESTS),./internal/prober,./internal/prober/forkserver

bin/bench: $(SOURCES) $(wildcard tools/bench/*.go)
	$(GO) -C tools/bench build -o "$(CURDIR)/$@" .

bin/kernels: $(SOURCES)
	$(GO) build -o $@ ./internal/testing/kernels

# What the tests need beside Go.
setup: ## install what the tests need beside Go
	tools/setup gcc strace cpio mmdebstrap rpcbind nfs-common:rpc.statd e2fsprogs:mkfs.ext4 xfsprogs:mkfs.xfs btrfs-progs:mkfs.btrfs util-linux:fsfreeze iproute2:ip sshfs openssh-server:sshd bindfs mergerfs gocryptfs squashfuse squashfs-tools:mksquashfs erofs-utils:mkfs.erofs lsof
	-@tools/setup $(KERNEL_NEEDS) qemu-system-x86:qemu-system-x86_64
	-@tools/setup podman crun runc
	-@tools/engines
	-@tools/stores

lint: ## formatting, vet, staticcheck, generated files, licenses
	@test -z "$$(gofmt -l cmd internal plugins tools)" || { gofmt -l cmd internal plugins tools; echo 'not gofmt-clean'; exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 $(GO) vet ./...
	$(GO) -C tools/lint tool -n staticcheck >/dev/null
	"$$($(GO) -C tools/lint tool -n staticcheck)" ./...
	$(GO) mod tidy -diff
	$(GO) -C tools/package vet . && $(GO) -C tools/package mod tidy -diff && $(GO) -C tools/package test .
	for module in bench dashboards; do $(GO) -C tools/$$module vet ./... && $(GO) -C tools/$$module mod tidy -diff && (cd tools/$$module && "$$($(GO) -C ../lint tool -n staticcheck)" ./...) || exit; done
	$(GO) -C tools/s3 vet . && $(GO) -C tools/s3 mod tidy -diff
	$(GO) -C tools/kubernetes vet . && $(GO) -C tools/kubernetes mod tidy -diff && $(GO) -C tools/kubernetes test -count 1 .
	tools/readme
	$(GO) run ./tools/licenses ./...
	$(GO) -C tools/dashboards run ./generate -check "$(CURDIR)"
	$(GO) -C tools/pictures vet ./...

# The detector makes all slow. It looks at internal/testing/e2e by a soak, with a plugin that
# looks for races, since those tests run programs, and not at what the kernel does alone. In
# this build helpers don't share the fork server's memory: what they do there is not looked at.
race: ## tests with the race detector
	$(GO) -C tools/test tool -n gotestsum >/dev/null
	$(RACE) $(RACED)
	$(RACESOAK)
RACE     = VFSPROBE_TEST_TIMEOUT=1s CGO_ENABLED=1 $(call gotest,race) -race -skip ADirectoryOfSevenMillion
RACESOAK = VFSPROBE_RACE=1 VFSPROBE_SOAK=30s $(call gotest,race) -run TestSoak $(INTERNAL)/testing/e2e

# Every parser, for FUZZTIME each; FUZZTIME="-cpu 600" for ten minutes of CPU time
# each, which is some sixteen hours of it.
fuzz: ## every parser, for FUZZTIME each
	tools/fuzz $(FUZZTIME)

# deb, rpm and tar.gz for amd64 and arm64, with checksums, in dist. The same
# sources make the same bytes; ARCH=arm64 makes one.
ARCH ?= amd64,arm64
package: ## deb, rpm and tar.gz in dist; ARCH=amd64 makes one
	$(GO) -C tools/package run . -out "$(CURDIR)/dist" -arch $(ARCH)

# A release, of a clean work tree: the changelog is cut, committed and tagged, and all files
# made in dist, with a bill of materials and provenance. SIGN is a command that signs a file.
release: ## a release of a clean work tree: VERSION=1.2.3
	tools/release $(VERSION)

# Proves that the sources of the tag make the same bytes.
verify-release: ## make it again from its tag, and compare: VERSION=1.2.3
	tools/release -verify $(VERSION)

# Both, in a copy that is thrown away: what CI checks.
check-release: ## both, in a copy that is thrown away
	-@tools/setup lintian rpmlint rpm rpm2cpio cpio
	tools/release -dry-run

# Writes the tables of docs/FAULTS.md.
faults: setup ## write the tables of docs/FAULTS.md: local file systems and devices
	FAULTS="$(CURDIR)/docs/FAULTS.md" $(GO) test -count 1 -timeout 20m -v -run 'TestFaults' ./plugins/inputs/mountstat
	FAULTS="$(CURDIR)/docs/FAULTS.md" $(GO) test -count 1 -timeout 20m -v -run 'TestFaults' ./plugins/inputs/dentrycache
	FAULTS="$(CURDIR)/docs/FAULTS.md" $(GO) test -count 1 -timeout 20m -v -run 'TestVfsprobe_ASilentBtrfs' ./internal/testing/e2e
	FAULTS="$(CURDIR)/docs/FAULTS.md" $(GO) test -count 1 -timeout 20m -v -run 'TestDevices' ./internal/testing/devices

# What the dashboards' tests replay: metrics of hosts with NFS faults.
RECORDED = network-cut statd-killed nlm-dropped many-mounts rpcbind-stopped lock-held lock-held-ganesha export-removed
record: bin/nfsvm ## record what the dashboards' tests replay
	-@tools/setup mmdebstrap $(VM_NEEDS_$(ACCEL))
	bin/nfsvm -accel $(ACCEL) -vms $(VMS) -run '^($(subst $() ,|,$(RECORDED)))$$' -record tools/dashboards/testdata/nfs

faults-nfs: bin/nfsvm ## write those of NFS
	-@tools/setup mmdebstrap $(VM_NEEDS_$(ACCEL))
	@$(NFSVM) -table docs/FAULTS.md

# Writes the table of docs/PRIVILEGES.md, the drop-in, and docs/TROUBLESHOOTING.md's
# tables of what the doctor finds.
privileges: setup ## write the tables of docs/PRIVILEGES.md and docs/TROUBLESHOOTING.md
	PRIVILEGES=1 $(GO) test -count 1 -timeout 5m -v -run TestPrivileges ./internal/testing/e2e
	PRIVILEGES=1 $(GO) test -count 1 -run 'TestPackaging|TestTroubleshooting' ./internal/doctor

# Grafana's dashboards, the alert rules and their runbooks.
dashboards: ## write Grafana's dashboards, alert rules and runbooks
	$(GO) -C tools/dashboards run ./generate "$(CURDIR)"

# The plain manifest and kustomize's, from the Helm chart.
manifests: dashboards ## write the Kubernetes manifests, from the Helm chart
	$(GO) -C tools/kubernetes run . "$(CURDIR)"

# Draws what the dashboards' queries return in their test, and what "vfsprobe check" prints
# while a mount hangs, for the README.
pictures: data := $(shell mktemp -u)
pictures: bin/vfsprobe ## draw the pictures of the README
	tools/stores
	PICTURES=$(data) $(GO) -C tools/dashboards test -count 1 -timeout 5m -run TestPanels .
	mkdir -p docs/images
	$(GO) -C tools/pictures run . $(data) "$(CURDIR)/docs/images/dashboards.png"
	tools/pictures/session bin/vfsprobe $(data)
	$(GO) -C tools/pictures run . terminal $(data) "$(CURDIR)/docs/images/check.png"
	rm -f $(data)

# Writes the tables of docs/FLEET.md.
fleet: ## write the tables of docs/FLEET.md
	tools/stores
	FLEET="$(CURDIR)/docs/FLEET.md" $(GO) -C tools/dashboards test -count 1 -timeout 10m -v -run TestFleet .

bench: bin/bench ## what vfsprobe costs, beside the limit and other programs: half an hour
	tools/setup gcc
	bin/bench
	$(GO) test -count 1 -timeout 10m -run '^$$' -bench . ./internal/dcache/attribution
	$(MAKE) --no-print-directory gathers

# Whole gathers beside those of other programs, in ten minutes, and what vfsprobe
# takes between them. BEFORE is an earlier vfsprobe, which gathers beside this one.
gathers: raw := docs/images/gathers.csv
gathers: bin/bench ## draw what gathers cost beside those of other programs
	-@tools/stores
	mkdir -p docs/images
	bin/bench -raw $(raw) $(if $(BEFORE),-before $(BEFORE)) compare
	$(GO) -C tools/pictures run . gathers "$(CURDIR)/$(raw)" "$(CURDIR)/docs/images/gathers.png"
	bin/bench idle

# Half an hour of faults under Telegraf, at random. SOAK sets another time, and
# VFSPROBE_SOAK_SEED what is drawn.
SOAK ?= 30m
soak: setup ## half an hour of faults at random; SOAK=2h for longer
	VFSPROBE_SOAK=$(SOAK) $(GO) test -count 1 -timeout 24h -v -run 'TestSoak' ./internal/testing/e2e

# Known vulnerabilities in what is linked. VULNDB is a copy of the database, as
# file:///DIRECTORY, where the one on the net can't be reached.
VULNDB ?=
vuln: ## known vulnerabilities in what is linked
	$(GO) run golang.org/x/vuln/cmd/govulncheck@v1.9.0 $(if $(VULNDB),-db $(VULNDB)) ./...

clean: ## remove what was built
	rm -rf bin dist
