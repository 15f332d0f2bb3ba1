package attribution

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/dcache"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
)

// hooks are the functions that make, change and free negative dentries. Each
// has a program for kprobe and one for fentry. The first function that a kernel
// has is used.
var hooks = []struct {
	program   string
	functions []string
	required  bool
}{
	// Since 6.17 the older one calls the newer one.
	{"d_splice_alias", []string{"d_splice_alias_ops", "d_splice_alias"}, true},
	{"d_add", []string{"d_add"}, true},
	{"d_instantiate", []string{"d_instantiate"}, true},
	{"d_instantiate_new", []string{"d_instantiate_new"}, true},
	{"d_delete", []string{"d_delete"}, true},
	// Renamed in 7.2. Older kernels have one of that name, which calls it.
	{"__dentry_kill", []string{"__dentry_kill", "dentry_kill"}, true},
	{"d_move", []string{"d_move"}, false},
	{"d_drop", []string{"d_drop"}, false},
	{"d_invalidate", []string{"d_invalidate"}, false},
}

// Counters in the map totals: see the C source.
const (
	counterCreated = iota
	counterConverted
	counterUnlinked
	counterKilled
	counterLost
	counterSampled
	counters
)

// A Tracer counts. Its methods may be called from several goroutines.
type Tracer struct {
	options Options

	mu         sync.Mutex
	status     Status
	fellBack   bool
	missed     int64 // of programs that are not used any more
	collection *ebpf.Collection
	functions  map[string]string // that programs are attached to
	links      []link.Link       // of programs that are attached
	ids        maphash.Seed
	closed     bool
}

// Start begins to count in the best mode that works here, which can be None.
// It takes some 0.3 s, and up to twice Options.Timeout more for each mode where
// the self-tests hang. It touches no file system but procfs and sysfs.
//
// The error is for a broken build only: what the host refuses is in
// [Tracer.Status].
func Start(options Options) (*Tracer, error) {
	if options.Modes == nil {
		options.Modes = []Mode{Fentry, Kprobe, ENOENT}
	}
	if options.Directories == nil {
		options.Directories = []string{"/sys", "/"}
	}
	if options.Timeout == 0 {
		options.Timeout = 2 * time.Second
	}
	if options.Proc == "" {
		options.Proc = "/proc"
	}
	spec, err := programs()
	if err != nil {
		return nil, err
	}
	t := &Tracer{options: options, ids: maphash.MakeSeed()}
	types, err := kernelTypes()
	if err != nil {
		for _, mode := range options.Modes {
			t.status.Refused = append(t.status.Refused, Refusal{mode, err})
		}
		return t, nil
	}
	defer btf.FlushKernelSpec()
	for _, mode := range options.Modes {
		if mode == None {
			break
		}
		err := t.try(mode, spec, types)
		if err == nil {
			t.status.Mode = mode
			t.status.Watching = mode != ENOENT
			break
		}
		t.unload()
		t.status.Refused = append(t.status.Refused, Refusal{mode, err})
	}
	return t, nil
}

// try begins to count in a mode. If there are maps of another mode, they are
// used on.
func (t *Tracer) try(mode Mode, spec *ebpf.CollectionSpec, types *btf.Spec) error {
	programs := [][]string{nil} // those of the hooks
	if mode == ENOENT {
		programs = exitPrograms[t.options.skipExit:]
	}
	var err error
	for _, names := range programs {
		if err = t.load(mode, spec, types, names); err == nil {
			break
		}
	}
	if err != nil {
		return err
	}
	if err := errors.Join(t.nextEpoch(), t.attach()); err != nil {
		return err
	}
	test, err := t.selfTest(mode, &t.options)
	if err != nil {
		return fmt.Errorf("self-test: %w", err)
	}
	t.status.SelfTest = test
	if mode == ENOENT {
		_, untyped := t.collection.Programs[dentryProgSysExit]
		second, err := secondOf(!untyped)
		if err != nil {
			return err
		}
		if err := t.collection.Variables[dentryVarSecond].Set(second); err != nil {
			return fmt.Errorf("turn sampling on: %w", err)
		}
		return t.detach()
	}
	return nil
}

// secondOf returns how long a second is by the clock of the program for sys_exit:
// in jiffies or in nanoseconds. The resolution of coarse clocks is a jiffy
// (clock_getres(2), kernel/time/posix-timers.c).
func secondOf(typed bool) (uint64, error) {
	if !typed {
		return uint64(time.Second), nil
	}
	var jiffy unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &jiffy); err != nil {
		return 0, fmt.Errorf("clock_getres: %w", err)
	}
	return uint64(time.Second) / uint64(max(jiffy.Nano(), 1)), nil
}

// exitPrograms are those of the mode ENOENT, the best first: by the kernel's own count of
// negative dentries, by what calls have failed, and the same before 5.11.
var exitPrograms = [][]string{
	{dentryProgSysExitCounted, dentryProgSchedSwitch}, {dentryProgSysExitTyped}, {dentryProgSysExit},
}

// load loads the programs of one mode and their maps. In the mode ENOENT it is the given ones.
func (t *Tracer) load(mode Mode, all *ebpf.CollectionSpec, types *btf.Spec, exit []string) error {
	liftMemlock(t.options.Proc)
	spec := all.Copy()
	var wanted map[string]bool // of the programs
	var err error
	t.functions = map[string]string{}
	if mode == ENOENT {
		wanted, err = t.prepareExits(spec, types, exit)
	} else {
		wanted, err = t.prepareHooks(spec, types, mode)
	}
	if err != nil {
		return err
	}
	if err := spec.Variables[dentryVarMemoryV1].Set(t.options.MemoryV1); err != nil {
		return err
	}
	delete(spec.Maps, dentryMapWalks)
	for name := range spec.Programs {
		if !wanted[name] {
			delete(spec.Programs, name)
		}
	}
	var options ebpf.CollectionOptions
	if t.collection != nil {
		options.MapReplacements = maps.Clone(t.collection.Maps)
		maps.DeleteFunc(options.MapReplacements, func(name string, _ *ebpf.Map) bool { return strings.HasPrefix(name, ".") }) // variables
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, options)
	if err != nil {
		return loadError(err)
	}
	t.unload()
	t.collection = collection
	t.status.MapBytes = 0
	for _, m := range collection.Maps {
		if info, err := m.Info(); err == nil {
			if bytes, ok := info.Memlock(); ok {
				t.status.MapBytes += int64(bytes)
			}
		}
	}
	return nil
}

// prepareExits sets what the programs at the exit of system calls need. It returns which programs
// there are to be.
func (t *Tracer) prepareExits(spec *ebpf.CollectionSpec, types *btf.Spec, exit []string) (map[string]bool, error) {
	wanted := map[string]bool{}
	for _, name := range exit {
		wanted[name] = true
	}
	if t.status.Counted = wanted[dentryProgSysExitCounted]; t.status.Counted {
		delete(spec.Maps, dentryMapSeen)
		distance, err := countFromRunqueue(types)
		if err != nil {
			return nil, err
		}
		if err := spec.Variables[dentryVarCountFromRunqueue].Set(distance); err != nil {
			return nil, err
		}
	}
	return wanted, spec.Variables[dentryVarSyscalls].Set(pathSyscalls())
}

// prepareHooks sets what the programs at functions of the kernel are attached to. It returns which
// programs there are to be.
func (t *Tracer) prepareHooks(spec *ebpf.CollectionSpec, types *btf.Spec, mode Mode) (map[string]bool, error) {
	// What follows would look for other ways, and give their errors.
	if _, err := os.Stat(kprobeEvents); mode == Kprobe && err != nil {
		return nil, fmt.Errorf("the kernel has no kprobes (CONFIG_KPROBE_EVENTS): %w", err)
	}
	wanted := map[string]bool{}
	for _, hook := range hooks {
		program := spec.Programs[mode.String()+"_"+hook.program]
		function, err := kernelFunction(types, hook.functions)
		if err != nil && hook.required {
			return nil, err
		}
		if err == nil {
			program.AttachTo = function
			wanted[program.Name] = true
			t.functions[program.Name] = function
		}
	}
	delete(spec.Maps, dentryMapSeen)
	delete(spec.Maps, ".bss")
	delete(spec.Variables, dentryVarSecond)
	delete(spec.Variables, dentryVarEpoch)
	return wanted, nil
}

// countFromRunqueue returns how far the kernel's count of negative dentries is from the run
// queue, as variables that each CPU has one of. Types of such variables are known where the
// kernel was built with pahole from 1.22 on.
func countFromRunqueue(types *btf.Spec) (int64, error) {
	var perCPU *btf.Datasec
	if err := types.TypeByName(".data..percpu", &perCPU); err != nil {
		return 0, fmt.Errorf("the kernel's variables of each CPU: %w", err)
	}
	offset := func(name string) (int64, error) {
		for _, variable := range perCPU.Vars {
			if variable.Type.TypeName() == name {
				return int64(variable.Offset), nil
			}
		}
		return 0, fmt.Errorf("the kernel has no variable %s of each CPU", name)
	}
	count, err := offset("nr_dentry_negative")
	queue, err2 := offset("runqueues")
	return count - queue, errors.Join(err, err2)
}

// liftMemlock lets kernels before 5.11 account for maps, which they do by
// RLIMIT_MEMLOCK. A failure shows when they are made. (Package rlimit would make a
// map at every start of the process to find out.)
func liftMemlock(proc string) {
	version, err := dcache.ReadVersion(proc)
	if err == nil && (version.Major < 5 || version.Major == 5 && version.Minor < 11) {
		_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
	}
}

// programs returns what the source in bpf is compiled to.
func programs() (*ebpf.CollectionSpec, error) {
	packed, err := gzip.NewReader(bytes.NewReader(_DentryBytes))
	if err != nil {
		return nil, fmt.Errorf("unpacking the BPF programs: %w", err)
	}
	object, err := io.ReadAll(packed)
	if err != nil {
		return nil, fmt.Errorf("unpacking the BPF programs: %w", err)
	}
	return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(object))
}

// vmlinux holds the kernel's types.
const vmlinux = "/sys/kernel/btf/vmlinux"

// kernelTypes reads them, and has package btf keep them for what is loaded next, until
// [btf.FlushKernelSpec]. That would look for them in files elsewhere, on file systems
// that may hang. Whoever loads programs starts with it: a sandbox which kills for that is
// found out.
func kernelTypes() (*btf.Spec, error) {
	if survives, err := forkserver.Survives(unix.SYS_BPF); !survives {
		return nil, errors.Join(errors.New("a sandbox kills a process that calls bpf(2); a systemd unit's SystemCallFilter= must have it, or SystemCallErrorNumber=EPERM"), err)
	}
	if _, err := os.Stat(vmlinux); err != nil {
		return nil, fmt.Errorf("types of the kernel (CONFIG_DEBUG_INFO_BTF): %w", err)
	}
	types, err := btf.LoadKernelSpec()
	if err != nil {
		return nil, fmt.Errorf("types of the kernel: %w", err)
	}
	return types, nil
}

// kernelFunction returns the first of the functions that the kernel has.
func kernelFunction(types *btf.Spec, names []string) (string, error) {
	for _, name := range names {
		var function *btf.Func
		if err := types.TypeByName(name, &function); err == nil {
			return name, nil
		}
	}
	return "", fmt.Errorf("the kernel has no function %s", strings.Join(names, " or "))
}

// kprobeEvents is there where kprobes are (since 4.17).
const kprobeEvents = "/sys/bus/event_source/devices/kprobe"

// loadError leaves out the verifier's log but for its end.
func loadError(err error) error {
	var verifier *ebpf.VerifierError
	if errors.As(err, &verifier) && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("load: %w%s", verifier.Cause, lastLine(verifier.Log))
	}
	return fmt.Errorf("load: %w", explain(err))
}

// explain says what a refusal comes from, as far as that can be known.
func explain(err error) error {
	switch {
	case errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: the kernel has no trampolines to its functions (arm64: since 6.4)", err)
	case !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES):
		return err
	case !hasCapabilities(unix.CAP_BPF, unix.CAP_PERFMON):
		return fmt.Errorf("%w: it takes CAP_BPF and CAP_PERFMON (Linux 5.8), or CAP_SYS_ADMIN", unix.EPERM)
	}
	if refused := SeccompRefuses(); len(refused) > 0 {
		return fmt.Errorf("%w, even with the capabilities: seccomp refuses %s", unix.EPERM, strings.Join(refused, " and "))
	}
	switch {
	case !hasCapabilities(unix.CAP_SYS_ADMIN):
		return fmt.Errorf("%w, even with CAP_BPF and CAP_PERFMON: kernel.perf_event_paranoid above 2 asks for CAP_SYS_ADMIN, or the kernel is in lockdown", unix.EPERM)
	}
	return fmt.Errorf("%w, even with CAP_SYS_ADMIN: the kernel is in lockdown, or this is a container", unix.EPERM)
}

// hasCapabilities says whether all of them are effective. CAP_SYS_ADMIN implies
// the others.
func hasCapabilities(wanted ...int) bool {
	effective, _ := prober.OwnCapabilities()
	has := func(c int) bool { return effective&(1<<c) != 0 }
	return has(unix.CAP_SYS_ADMIN) || !slices.ContainsFunc(wanted, func(c int) bool { return !has(c) })
}

func lastLine(log []string) string {
	for _, line := range slices.Backward(log) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "processed ") {
			return " (" + line + ")"
		}
	}
	return ""
}

// attach begins to run the programs.
func (t *Tracer) attach() error {
	for _, name := range slices.Sorted(maps.Keys(t.collection.Programs)) {
		program := t.collection.Programs[name]
		var l link.Link
		var err error
		switch program.Type() {
		case ebpf.Tracing:
			l, err = link.AttachTracing(link.TracingOptions{Program: program})
		case ebpf.Kprobe:
			l, err = link.Kprobe(t.functions[name], program, nil)
		case ebpf.RawTracepoint:
			l, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sys_exit", Program: program})
		}
		if err != nil {
			return fmt.Errorf("attach %s: %w", name, errors.Join(explain(err), t.detach()))
		}
		t.links = append(t.links, l)
	}
	return nil
}

func (t *Tracer) detach() error {
	var errs []error
	for _, l := range t.links {
		errs = append(errs, l.Close())
	}
	t.links = nil
	return errors.Join(errs...)
}

func (t *Tracer) unload() {
	_ = t.detach()
	if t.collection != nil {
		t.collection.Close()
		t.collection = nil
	}
}

// Status says what is being counted, and why not more.
func (t *Tracer) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.status
	s.Refused = slices.Clone(s.Refused)
	if t.collection != nil {
		if totals, err := t.totals(); err == nil {
			s.EventsLost = totals.Lost
		}
		s.EventsLost += t.missed
		if !s.Counted { // else the next one that runs counts it
			s.EventsLost += t.notRun()
		}
	}
	return s
}

// notRun returns how often the kernel did not run a program because the same one
// was being run on that CPU (since 5.12; before it is not counted). That is when
// a task is preempted in it.
func (t *Tracer) notRun() (sum int64) {
	for _, program := range t.collection.Programs {
		if stats, err := program.Stats(); err == nil {
			sum += int64(stats.RecursionMisses)
		}
	}
	return sum
}

// tolerable is the part of events that may be lost in the mode Fentry.
const tolerable = 0.001

// fallBack changes from the mode Fentry to Kprobe, whose programs are not
// preempted, with the same rows. Where that is not possible all stays as it is.
func (t *Tracer) fallBack() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	spec, err := programs()
	if err != nil {
		return
	}
	types, err := kernelTypes()
	if err != nil {
		return
	}
	defer btf.FlushKernelSpec()
	before, lost := t.status, t.notRun()
	_ = t.detach() // for both would count for a while
	if err := t.try(Kprobe, spec, types); err == nil {
		t.missed += lost
		t.status.Mode = Kprobe
		t.status.Refused = []Refusal{{Fentry, fmt.Errorf("%d events were lost: this kernel preempts the programs", lost)}}
		return
	}
	t.status = before
	if t.try(Fentry, spec, types) != nil { // which worked a moment ago
		t.unload()
		t.status.Mode, t.status.Watching = None, false
	}
}

// Watch turns counting on or off in the mode ENOENT, which costs something in
// every system call of the host. It does nothing in other modes.
func (t *Tracer) Watch(on bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.status.Mode != ENOENT || on == t.status.Watching {
		return nil
	}
	var err error
	if on {
		err = errors.Join(t.nextEpoch(), t.attach())
	} else {
		err = t.detach()
	}
	if err == nil {
		t.status.Watching = on
	}
	return err
}

// nextEpoch makes nobody's work of what happened while nothing was counted.
func (t *Tracer) nextEpoch() error {
	if !t.status.Counted {
		return nil
	}
	var epoch uint64
	variable := t.collection.Variables[dentryVarEpoch]
	if err := variable.Get(&epoch); err != nil {
		return err
	}
	return variable.Set(epoch + 1)
}

// Close ends the counting and frees all it uses.
func (t *Tracer) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	err := t.detach()
	t.unload()
	t.status.Watching = false
	return err
}

// Read returns all rows, in no order. At 8192 rows it takes some milliseconds.
//
// When the mode Fentry turns out to lose more than a thousandth of the events,
// as it can on kernels that preempt (see the package's documentation), Read has
// the mode changed to Kprobe, in the background and with the rows kept.
func (t *Tracer) Read() ([]Source, Totals, error) { return t.read(nil) }

// ReadUnless is Read, without the sources where the totals are still the given ones.
func (t *Tracer) ReadUnless(same Totals) ([]Source, Totals, error) { return t.read(&same) }

func (t *Tracer) read(unless *Totals) ([]Source, Totals, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.collection == nil {
		return nil, Totals{}, nil
	}
	totals, err := t.totals()
	if err != nil {
		return nil, Totals{}, err
	}
	if t.status.Mode == Fentry && !t.fellBack && slices.Contains(t.options.Modes, Kprobe) &&
		float64(t.notRun()) > max(selfTestLookups, tolerable*float64(totals.Created)) {
		t.fellBack = true
		go t.fallBack()
	}
	if unless != nil && totals == *unless {
		return nil, totals, nil
	}
	sources, err := t.sources()
	return sources, totals, err
}

// sources reads the rows, with their directories.
func (t *Tracer) sources() ([]Source, error) {
	type described struct {
		Place
		killed int64
	}
	known := make(map[dentryPlace]*described)
	names := make(texts)
	err := each(t.collection.Maps[dentryMapDirectories], func(place *dentryPlace, d *dentryDirectory) {
		known[*place] = &described{Place{
			FSType:    names.text(cString(d.Fstype[:])),
			Path:      parsePath(d.Path[:min(int(d.PathSize), len(d.Path))], names.text),
			Truncated: d.Truncated != 0,
			FromRoot:  d.FromRoot != 0,
			Relative:  string(d.Relative[:min(int(d.RelativeSize), len(d.Relative))]),
		}, int64(d.Killed)}
	})
	if err != nil {
		return nil, err
	}
	var sources []Source
	unknown := &described{Place: Place{Truncated: true}}
	err = each(t.collection.Maps[dentryMapRows], func(key *dentryRowKey, row *dentryRow) {
		directory := cmp.Or(known[key.Place], unknown)
		s := Source{
			ID:          maphash.Comparable(t.ids, *key),
			Comm:        names.text(cString(key.Comm[:])),
			CgroupID:    key.Cgroup,
			Place:       directory.Place,
			Created:     int64(row.Created),
			Converted:   int64(row.Converted),
			Unlinked:    int64(row.Unlinked),
			KilledInDir: directory.killed,
		}
		if mark := markOf(key); uint32(row.Pid) == mark && uint32(row.Uid) == mark {
			s.PID, s.UID = int32(row.Pid>>32), uint32(row.Uid>>32)
		}
		s.Place.Device, s.Place.Inode = deviceOf(key.Place.Device), key.Place.Inode
		sources = append(sources, s)
	})
	return sources, err
}

// markOf is what the programs mark the pid and the uid in a key's row with, see the C source: a
// program that was preempted may have written those of another key's process.
func markOf(key *dentryRowKey) uint32 {
	word := func(at int) uint64 {
		var bytes [8]byte
		for i := range bytes {
			bytes[i] = byte(key.Comm[at+i])
		}
		return binary.NativeEndian.Uint64(bytes[:])
	}
	mix := key.Place.Inode*3 ^ key.Place.Hash*5 ^ uint64(key.Place.Device)*7 ^ key.Cgroup*11 ^ word(0)*13 ^ word(8)*17
	return uint32(mix ^ mix>>32)
}

func (t *Tracer) totals() (Totals, error) {
	var sums [counters]int64
	var perCPU []uint64
	for i := range sums {
		if err := t.collection.Maps[dentryMapTotals].Lookup(uint32(i), &perCPU); err != nil {
			return Totals{}, fmt.Errorf("read totals: %w", err)
		}
		for _, n := range perCPU {
			sums[i] += int64(n)
		}
	}
	return Totals{
		Created: sums[counterCreated], Converted: sums[counterConverted], Unlinked: sums[counterUnlinked],
		Killed: sums[counterKilled], Lost: sums[counterLost], Sampled: sums[counterSampled],
	}, nil
}

// batch is how many entries of a map are read by a system call. Those of a bucket of the hash
// table must fit.
const batch = 512

// each calls a function for all entries of a hash map, which it reads by batches (5.6): the
// memory of all is not needed at once. Entries which are made or evicted meanwhile may be left
// out.
func each[K comparable, V any](m *ebpf.Map, do func(*K, *V)) error {
	keys, values := make([]K, batch), make([]V, batch)
	var cursor ebpf.MapBatchCursor
	for n := 0; n < int(m.MaxEntries()); {
		got, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range got {
			do(&keys[i], &values[i])
		}
		n += got
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			break
		}
		if err != nil {
			return fmt.Errorf("read %s: %w", m, err)
		}
	}
	return nil
}

// texts makes strings, each only once: many rows have commands and directories in common, and
// many directories their parents' names.
type texts map[string]string

func (t texts) text(name []byte) string {
	s, ok := t[string(name)]
	if !ok {
		s = string(name)
		t[s] = s
	}
	return s
}

// parsePath splits the names of a directory and its parents, the directory's own
// first and each with a NUL, and turns their order round.
func parsePath(path []byte, text func([]byte) string) []string {
	components := make([]string, 0, bytes.Count(path, []byte{0}))
	for len(path) > 0 {
		name, rest, found := bytes.Cut(path, []byte{0})
		if !found {
			break
		}
		components = append(components, text(name))
		path = rest
	}
	slices.Reverse(components)
	return components
}

// cString is what comes before the first NUL.
func cString(b []byte) []byte {
	before, _, _ := bytes.Cut(b, []byte{0})
	return before
}

// deviceOf splits a dev_t of the kernel (MAJOR, MINOR of linux/kdev_t.h).
func deviceOf(dev uint32) Device { return Device{Major: dev >> 20, Minor: dev & (1<<20 - 1)} }
