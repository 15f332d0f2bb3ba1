package prober_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/prober/forkserver"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
)

// tableLimit is more than any mount table of a test has.
const tableLimit = 4 << 20

// done runs the plan, which has time, and expects no failure.
func done(t testing.TB, p *prober.Prober, plan *prober.Plan) prober.Report {
	t.Helper()
	plan.Timeout = time.Minute
	report := p.Run(prober.Check{Key: "key", Plan: plan})
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	require.Nil(t, report.Failed(), "%v", &report)
	return report
}

func content(t testing.TB, p *prober.Prober, path string) string {
	t.Helper()
	var plan prober.Plan
	index := plan.ReadFile(path, tableLimit)
	report := done(t, p, &plan)
	read := report.Step(index)
	assert.EqualValues(t, len(read.Output), read.Result)
	assert.Equal(t, "read", read.Name)
	return string(read.Output)
}

func TestReadAll_AFileIsReadWhole(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 1<<20 + 7} {
		want := make([]byte, size)
		for i := range want {
			want[i] = byte(rand.Uint32())
		}
		file := filepath.Join(dir, strconv.Itoa(size))
		require.NoError(t, os.WriteFile(file, want, 0o600))
		assert.True(t, string(want) == content(t, p, file), "%d bytes", size)
	}
}

func TestReadAll_TheMountTable(t *testing.T) {
	p := start(t, prober.Options{})
	eventually(t, "both are the same, once nobody mounts", func() bool {
		want, err := os.ReadFile("/proc/self/mountinfo")
		require.NoError(t, err)
		return string(want) == content(t, p, "/proc/self/mountinfo")
	})
}

func TestReadAll_TheLimit(t *testing.T) {
	p := start(t, prober.Options{})
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, bytes.Repeat([]byte("x"), 10000), 0o600))
	for limit, errno := range map[int]unix.Errno{1: unix.EFBIG, 4096: unix.EFBIG, 9999: unix.EFBIG, 10000: 0, 10001: 0} {
		plan := &prober.Plan{Timeout: time.Minute}
		index := plan.ReadFile(file, limit)
		report := p.Run(prober.Check{Key: file, Plan: plan})
		require.Equal(t, prober.Done, report.Outcome, "%v", &report)
		assert.Equal(t, errno, report.Step(index).Errno)
		assert.Len(t, report.Step(index).Output, min(limit, 10000))
	}
	plan := &prober.Plan{Timeout: time.Minute}
	missing, there := plan.ReadFileIfAny(file+".missing", 100), plan.ReadFileIfAny(file, 10000)
	report := p.Run(prober.Check{Key: file, Plan: plan})
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	assert.Equal(t, unix.EBADF, report.Step(missing).Errno)
	assert.Len(t, report.Step(there).Output, 10000)
}

// What came before the hang is known, while it lasts and after it.
func TestReadAll_AHangLeavesWhatWasRead(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	reader, writer, err := os.Pipe()
	require.NoError(t, err)
	defer reader.Close()
	defer writer.Close()
	_, err = writer.WriteString(strings.Repeat("before", 1000))
	require.NoError(t, err)
	plan := &prober.Plan{Timeout: time.Minute}
	file := plan.Add(prober.Open(prober.CWD(), fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), reader.Fd()), unix.O_RDONLY, 0))
	plan.SeeOtherProcesses()
	index := plan.Add(prober.ReadAll(prober.ResultOf(file), tableLimit))
	reports := make(chan prober.Report, 1)
	ticket := p.Submit(prober.Check{Key: "pipe", Plan: plan}, func(r prober.Report) { reports <- r })
	eventually(t, "all that was written", func() bool {
		r, _ := p.Progress(ticket)
		return len(r.Partial) == 6000 && r.HangsAt == index
	})
	require.True(t, p.SetDeadline(ticket, time.Now()))
	r := <-reports
	require.Equal(t, prober.Expired, r.Outcome, "%v", &r)
	assert.Equal(t, index, r.HangsAt)
	assert.Equal(t, "read", r.HangsIn)
	assert.Equal(t, strings.Repeat("before", 1000), string(r.Partial))
	assert.Nil(t, r.Step(index))
}

// A file system that falls silent in the middle of a file.
func TestReadAll_AStuckHelperLeavesWhatWasRead(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	fs := faultfs.NewWith(t, t.TempDir(), faultfs.Options{Size: 8192})
	fs.Delay(2*timeout, faultfs.Read) // of each read
	plan := &prober.Plan{Timeout: time.Minute}
	index := plan.ReadFile(filepath.Join(fs.Dir, faultfs.FileName), tableLimit)
	reports := make(chan prober.Report, 1)
	ticket := p.Submit(prober.Check{Key: fs.Dir, Plan: plan}, func(r prober.Report) { reports <- r })
	eventually(t, "the first part", func() bool {
		r, found := p.Progress(ticket)
		if found && len(r.Partial) >= 4096 {
			fs.Silence(faultfs.Read)
			return true
		}
		return false
	})
	eventually(t, "it hangs", func() bool { return fs.Unanswered() > 0 })
	require.True(t, p.SetDeadline(ticket, time.Now()))
	r := <-reports
	require.Equal(t, prober.Stuck, r.Outcome, "%v", &r)
	assert.Equal(t, index, r.HangsAt)
	assert.Contains(t, []int{4096, 8192}, len(r.Partial))
	r = p.Run(prober.Check{Key: fs.Dir, Plan: plan})
	assert.Equal(t, prober.Busy, r.Outcome, "%v", &r)
	assert.Equal(t, -1, r.HangsAt)
	fs.Heal()
}

func links(t testing.TB, p *prober.Prober, directory, prefix string, limit int) []prober.Link {
	t.Helper()
	var plan prober.Plan
	plan.SeeOtherProcesses()
	fd := prober.ResultOf(plan.Add(prober.Open(prober.CWD(), directory, unix.O_RDONLY|unix.O_DIRECTORY, 0)))
	index := plan.Add(prober.ReadLinks(fd, prefix, limit))
	report := done(t, p, &plan)
	found := report.Step(index).Links()
	assert.EqualValues(t, len(found), report.Step(index).Result)
	return found
}

func TestReadLinks_OfAProcess(t *testing.T) {
	p := start(t, prober.Options{})
	file, err := os.Create(filepath.Join(t.TempDir(), "file"))
	require.NoError(t, err)
	defer file.Close()
	own := links(t, p, fmt.Sprintf("/proc/%d/fd", os.Getpid()), "", 4096)
	assert.Contains(t, own, prober.Link{Name: strconv.Itoa(int(file.Fd())), Target: file.Name()})
	assert.Equal(t, []prober.Link{{Name: strconv.Itoa(int(file.Fd())), Target: file.Name()}},
		links(t, p, fmt.Sprintf("/proc/%d/fd", os.Getpid()), file.Name(), 4096))
	assert.Empty(t, links(t, p, fmt.Sprintf("/proc/%d/fd", os.Getpid()), "/nowhere", 4096))

	helpers := links(t, p, "/proc/self/fd", "/dev/", 4096)
	assert.Contains(t, helpers, prober.Link{Name: "0", Target: "/dev/null"})
	assert.Contains(t, helpers, prober.Link{Name: "2", Target: "/dev/null"})
}

func TestReadLinks_OfEveryLength(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	var want []prober.Link
	for i := range 200 {
		link := prober.Link{Name: strconv.Itoa(100+i) + strings.Repeat("n", i), Target: strings.Repeat("t", 1+i*20)}
		require.NoError(t, os.Symlink(link.Target, filepath.Join(dir, link.Name)))
		want = append(want, link)
	}
	require.NoError(t, os.Symlink("t", filepath.Join(dir, "no digit")))
	got := links(t, p, dir, "t", 4096)
	slices.SortFunc(got, func(a, b prober.Link) int { return len(a.Name) - len(b.Name) })
	require.Len(t, got, len(want))
	for i := range want {
		require.Equal(t, want[i].Name, got[i].Name)
		wholeTarget := min(len(want[i].Target), 4096-4-len(want[i].Name))
		require.Len(t, got[i].Target, wholeTarget)
	}
	assert.Len(t, links(t, p, dir, "t", 7), 7)
}

func TestReadLinks_AnErrorOfOneEndsIt(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "7"), nil, 0o600))
	plan := &prober.Plan{Timeout: time.Minute}
	fd := prober.ResultOf(plan.Add(prober.Open(prober.CWD(), dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)))
	index := plan.Add(prober.ReadLinks(fd, "", 10))
	report := p.Run(prober.Check{Key: dir, Plan: plan})
	assert.Equal(t, unix.EINVAL, report.Step(index).Errno)
}

func names(t testing.TB, p *prober.Prober, directory string, limit int) ([]string, unix.Errno) {
	t.Helper()
	plan := &prober.Plan{Timeout: time.Minute}
	fd := prober.ResultOf(plan.Add(prober.Open(prober.CWD(), directory, unix.O_RDONLY|unix.O_DIRECTORY, 0)))
	index := plan.Add(prober.ReadDirectory(fd, limit))
	report := p.Run(prober.Check{Key: directory, Plan: plan})
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	return report.Step(index).Names(), report.Step(index).Errno
}

func TestReadDirectory_IsReadWhole(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	found, errno := names(t, p, dir, 100)
	assert.Empty(t, found)
	assert.Zero(t, errno)
	var want []string
	for i := range 250 { // some 40 KiB
		want = append(want, strconv.Itoa(100+i)+strings.Repeat("n", i))
		require.NoError(t, os.WriteFile(filepath.Join(dir, want[i]), nil, 0o600))
	}
	found, errno = names(t, p, dir, 1<<20)
	assert.Zero(t, errno)
	assert.ElementsMatch(t, want, found)
	found, errno = names(t, p, dir, 10000)
	assert.Equal(t, unix.EFBIG, errno)
	assert.Subset(t, want, found, "of those that were read whole")
	assert.NotEmpty(t, found)
}

func FuzzNames(f *testing.F) {
	f.Add([]byte("12345678123456780123456789.\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, output []byte) {
		length := 0
		for _, name := range (&prober.StepResult{Output: output}).Names() {
			length += len(name) + 19
			require.NotContains(t, name, "\x00")
		}
		require.LessOrEqual(t, length, len(output))
	})
}

// Masks and members of struct statmount; linux/mount.h.
const (
	maskBasic      = 0x1 | 0x2 | 0x8 | 0x10 | 0x20 // SB_BASIC, MNT_BASIC, MNT_ROOT, MNT_POINT, FS_TYPE
	maskOptions    = 0x80
	offsetOptions  = 4
	offsetMask     = 8
	offsetMagic    = 24
	offsetOldID    = 56
	offsetMntPoint = 108
	offsetStrings  = forkserver.MountMembers
)

type mount struct {
	oldID   uint32
	point   string
	mask    uint64
	magic   uint64
	options string
}

func mountOf(record []byte) mount {
	text := func(offset int) string {
		start := offsetStrings + binary.NativeEndian.Uint32(record[offset:])
		end, _, _ := bytes.Cut(record[start:], []byte{0})
		return string(end)
	}
	m := mount{oldID: binary.NativeEndian.Uint32(record[offsetOldID:]), point: text(offsetMntPoint),
		mask: binary.NativeEndian.Uint64(record[offsetMask:]), magic: binary.NativeEndian.Uint64(record[offsetMagic:])}
	if m.mask&maskOptions != 0 {
		m.options = text(offsetOptions)
	}
	return m
}

func statMounts(t testing.TB, p *prober.Prober, magics ...uint64) (all []mount) {
	t.Helper()
	plan := &prober.Plan{Timeout: time.Minute}
	plan.Add(prober.StatMounts(maskBasic|maskOptions, maskBasic, knownBy(magics), tableLimit))
	report := p.Run(prober.Check{Key: "key", Plan: plan})
	require.Equal(t, prober.Done, report.Outcome, "%v", &report)
	if step := report.Failed(); step != nil && step.Errno == unix.ENOSYS {
		t.Skip("statmount(2) is of Linux 6.8")
	}
	require.Nil(t, report.Failed(), "%v", &report)
	for record := range prober.Records(report.Step(0).Output) {
		require.Greater(t, len(record), int(unsafe.Sizeof(forkserver.MissingMount{})))
		all = append(all, mountOf(record))
	}
	assert.EqualValues(t, len(all), report.Step(0).Result)
	return all
}

// table reads the ids and mount points of the mount table.
func table(t testing.TB) map[uint32]string {
	content, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	points := make(map[uint32]string)
	for line := range strings.Lines(string(content)) {
		fields := strings.Fields(line)
		id, err := strconv.ParseUint(fields[0], 10, 32)
		require.NoError(t, err)
		points[uint32(id)] = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4])
	}
	return points
}

func TestStatMounts_AreThoseOfTheMountTable(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	root := t.TempDir()
	for i := range 300 { // several lists
		dir := filepath.Join(root, strconv.Itoa(i)+strings.Repeat("x", i%200))
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, unix.Mount("source", dir, "tmpfs", 0, "size=4096k"))
		defer func() { assert.NoError(t, unix.Unmount(dir, 0)) }()
	}
	eventually(t, "both are the same, once nobody mounts", func() bool {
		want := table(t)
		got := make(map[uint32]string)
		for _, m := range statMounts(t, p) {
			got[m.oldID] = m.point
		}
		return assert.ObjectsAreEqual(want, got)
	})
	for _, m := range statMounts(t, p) {
		if strings.HasPrefix(m.point, root) {
			require.Contains(t, m.options, "size=4096k")
		}
	}
	for _, m := range statMounts(t, p, 0x4711, unix.TMPFS_MAGIC) {
		if m.magic == unix.TMPFS_MAGIC {
			require.Zero(t, m.mask&maskOptions)
		}
	}
}

func TestStatMounts_TheLimit(t *testing.T) {
	p := start(t, prober.Options{})
	statMounts(t, p) // or there is none
	plan := &prober.Plan{Timeout: time.Minute}
	plan.Add(prober.StatMounts(maskBasic, maskBasic, knownBy(nil), 700))
	report := p.Run(prober.Check{Key: "key", Plan: plan})
	assert.Equal(t, unix.EFBIG, report.Failed().Errno)
	assert.LessOrEqual(t, len(report.Failed().Output), 700)
}

// Its mount point alone is longer than what is left of an answer.
func TestStatMounts_AMountThatDoesNotFitIsTold(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{})
	target := t.TempDir()
	for len(target) < 3700 {
		target += "/" + strings.Repeat("x", 200)
	}
	require.NoError(t, os.MkdirAll(target, 0o700))
	require.NoError(t, unix.Mount("source", target, "tmpfs", 0, ""))
	defer func() { assert.NoError(t, unix.Unmount(target, 0)) }()
	missing := []forkserver.MissingMount{{Size: 24, Errno: uint32(unix.EOVERFLOW), ID: uniqueID(t, target)}}
	for _, tt := range []struct {
		with, without uint64
		magics        []uint64
		want          []forkserver.MissingMount
	}{
		{maskBasic | maskOptions, maskBasic, nil, missing},
		{maskBasic, maskOptions, nil, nil}, // it fits if less is asked for
		{maskBasic, maskOptions, []uint64{unix.TMPFS_MAGIC}, nil},
	} {
		plan := &prober.Plan{Timeout: time.Minute}
		plan.Add(prober.StatMounts(tt.with, tt.without, knownBy(tt.magics), tableLimit))
		report := p.Run(prober.Check{Key: "key", Plan: plan})
		require.Equal(t, prober.Done, report.Outcome, "%v", &report)
		if step := report.Failed(); step != nil && step.Errno == unix.ENOSYS {
			t.Skip("statmount(2) is of Linux 6.8")
		}
		var got []forkserver.MissingMount
		for record := range prober.Records(report.Step(0).Output) {
			if len(record) == int(unsafe.Sizeof(forkserver.MissingMount{})) {
				got = append(got, *(*forkserver.MissingMount)(unsafe.Pointer(unsafe.SliceData(record))))
			}
		}
		assert.Equal(t, tt.want, got)
	}
}

// uniqueID is that of the mount at path; STATX_MNT_ID_UNIQUE, Linux 6.8.
func uniqueID(t testing.TB, path string) uint64 {
	var st unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID_UNIQUE, &st))
	return st.Mnt_id
}

func TestSteps_OfEachCall(t *testing.T) {
	p := start(t, prober.Options{})
	dir := t.TempDir()
	require.NoError(t, os.Symlink("target", filepath.Join(dir, "link")))
	var plan prober.Plan
	root := prober.ResultOf(plan.Add(prober.OpenPath(prober.CWD(), dir, unix.O_DIRECTORY).Named("find")))
	statfs := plan.Add(prober.Fstatfs(root))
	scratch := plan.Add(prober.Statx(root, "", 0, unix.STATX_TYPE).WithoutOutput())
	file := prober.ResultOf(plan.Add(prober.Open(root, "file", unix.O_RDWR|unix.O_CREAT|unix.O_EXCL, 0o600)))
	plan.Add(prober.Chmod(file, 0o640))
	plan.Add(prober.Pwrite(file, []byte("content"), 3))
	plan.Add(prober.Fsync(file))
	plan.Add(prober.ReadAhead(file, 0, 1))
	plan.Add(prober.Fadvise(file, 0, 0, unix.FADV_DONTNEED))
	read := plan.Add(prober.Read(file, 5))
	pread := plan.Add(prober.Pread(file, 100, 3))
	statx := plan.Add(prober.Statx(file, "", 0, unix.STATX_BASIC_STATS))
	getlk := plan.Add(prober.Lock(file, unix.F_GETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 7, Len: 1}))
	plan.Add(prober.Lock(file, unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 7, Len: 1}))
	plan.Add(prober.Flock(file, unix.LOCK_EX|unix.LOCK_NB))
	plan.Add(prober.Close(file).Silent())
	link := plan.Add(prober.Readlink(root, "link"))
	missing := plan.Add(prober.OpenAt2(root, "../x", &unix.OpenHow{Flags: unix.O_PATH, Resolve: unix.RESOLVE_BENEATH}).Optional())
	plan.Add(prober.Unlink(root, "file"))
	opened := prober.ResultOf(plan.Add(prober.Open(root, ".", unix.O_RDONLY, 0).MergeWithNext()))
	list := plan.Add(prober.Getdents(opened, 1024))
	watches := prober.ResultOf(plan.Add(prober.InotifyInit()))
	plan.Add(prober.InotifyAddWatch(watches, dir, unix.IN_CREATE))
	whole := plan.Add(prober.Statfs(dir))
	plan.Timeout = time.Minute
	r := p.Run(prober.Check{Key: dir, Plan: &plan})
	require.Equal(t, prober.Done, r.Outcome, "%v", &r)
	require.Equal(t, missing, r.Failed().Index, "%v", &r)
	assert.Equal(t, unix.EXDEV, r.Failed().Errno)
	require.NotNil(t, r.Step(whole), "%v", &r)

	assert.Equal(t, "find", r.Step(0).Name)
	assert.Equal(t, r.Step(whole).Statfs().Type, r.Step(statfs).Statfs().Type)
	assert.Nil(t, r.Step(scratch).Statx())
	assert.Equal(t, "\x00\x00\x00co", string(r.Step(read).Output))
	assert.Equal(t, "content", string(r.Step(pread).Output))
	assert.EqualValues(t, 10, r.Step(statx).Statx().Size)
	assert.EqualValues(t, unix.S_IFREG|0o640, r.Step(statx).Statx().Mode)
	assert.EqualValues(t, unix.F_UNLCK, r.Step(getlk).Lock().Type)
	assert.Equal(t, "target", string(r.Step(link).Output))
	assert.Contains(t, string(r.Step(list).Output), "link\x00")
	assert.NotContains(t, string(r.Step(list).Output), "file\x00")
	assert.Nil(t, r.Step(100).Statx())
	assert.Empty(t, r.Step(100).Links())
}

func TestFileHandle_IsTheKernels(t *testing.T) {
	p := start(t, prober.Options{})
	for _, path := range []string{t.TempDir(), "/proc/version", "/sys/kernel"} {
		var plan prober.Plan
		index := plan.Add(prober.FileHandle(prober.ResultOf(plan.Add(prober.OpenPath(prober.CWD(), path, 0)))).Optional())
		plan.Timeout = time.Minute
		r := p.Run(prober.Check{Key: path, Plan: &plan})
		require.NotNil(t, r.Step(index), "%v", &r)
		kind, handle := r.Step(index).FileHandle()
		want, _, err := unix.NameToHandleAt(unix.AT_FDCWD, path, 0)
		if err != nil { // of file systems without handles
			assert.Equal(t, err, r.Step(index).Errno, path)
			assert.Nil(t, handle)
			continue
		}
		assert.Equal(t, want.Type(), kind, path)
		assert.Equal(t, want.Bytes(), handle, path)
	}
	for _, forged := range []prober.StepResult{{}, {Output: make([]byte, 7)}, {Output: []byte{1, 0, 0, 0, 0, 0, 0, 0}}, {Output: bytes.Repeat([]byte{0xff}, 136)}} {
		_, handle := forged.FileHandle()
		assert.Empty(t, handle)
	}
	_, handle := (*prober.StepResult)(nil).FileHandle()
	assert.Nil(t, handle)
}

func TestSteps_ACompoundStepWithoutLimitIsRefused(t *testing.T) {
	p := start(t, prober.Options{})
	for _, step := range []prober.Step{
		prober.ReadAll(prober.Value(0), 0),
		prober.ReadAll(prober.Value(0), 10).Silent(),
		prober.ReadAll(prober.Value(0), 10).MergeWithNext(),
		prober.Call("", forkserver.ReadAll, prober.Value(0), prober.Value(10)),
		prober.Call("", 1<<16+99),
	} {
		report := p.Run(prober.Check{Key: "key", Plan: &prober.Plan{Steps: []prober.Step{step}, Timeout: timeout}})
		assert.Equal(t, prober.Unavailable, report.Outcome)
		assert.Error(t, report.Err)
	}
}

// What reads the host itself is not kept from it by whatever hangs.
func TestEssential_ChecksGoOnWhenEverythingIsStuck(t *testing.T) {
	faultfs.Require(t)
	const limit = 4
	p := start(t, prober.Options{MaxStuck: limit})
	hung, _ := hungMounts(t, limit+3)
	essential := func(fs *faultfs.FS, key string) prober.Check {
		c := check(fs.Dir)
		c.Key, c.Group, c.Essential = key, "host", true
		return c
	}
	// Those that are stuck themselves take no place from others.
	for i := range 2 {
		require.Equal(t, prober.Stuck, hangs(t, p, hung[limit+i], essential(hung[limit+i], strconv.Itoa(i))).Outcome)
	}
	var all sync.WaitGroup
	for range 4 {
		for _, fs := range hung[:limit] {
			all.Add(1)
			c := check(fs.Dir)
			c.Group, c.Trusted, c.Independent = fs.Dir, true, true
			p.Submit(c, func(prober.Report) { all.Done() })
		}
		all.Wait()
	}
	require.EqualValues(t, limit+2, p.Stats().Stuck)
	capped := check("/")
	capped.Trusted, capped.Independent = true, true
	require.Equal(t, prober.Capped, p.Run(capped).Outcome)

	c := patient(check("/"))
	c.Key, c.Essential = "host mounts", true
	r := p.Run(c)
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	assert.Equal(t, prober.Busy, p.Run(essential(hung[limit], "0")).Outcome, "one helper per key")
	hung[limit].Abort()
	eventually(t, "its end", func() bool { return p.Run(essential(hung[limit], "0")).Outcome == prober.Done })
}

// All places are taken by helpers that have just begun.
func TestEssential_ChecksWaitForNoPlace(t *testing.T) {
	faultfs.Require(t)
	p := start(t, prober.Options{Concurrency: 1})
	hung, healthy := hungMounts(t, 1)
	require.Equal(t, prober.Done, p.Run(patient(check(healthy.Dir))).Outcome)
	long := patient(check(hung[0].Dir))
	ticket := p.Submit(long, func(prober.Report) {})
	c := patient(check("/"))
	c.Essential = true
	r := p.Run(c)
	assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
	progress, found := p.Progress(ticket)
	assert.True(t, found, "%v", &progress)
	hung[0].Abort()
}

// A host that does not come to all checks in time comes to some of each class.
func TestProber_EachClassHasItsTurn(t *testing.T) {
	p := start(t, prober.Options{Concurrency: 1})
	const each = 100
	var started []bool // trusted
	var mu sync.Mutex
	var all sync.WaitGroup
	for i := range 2 * each {
		c := patient(check("/"))
		c.Key, c.Group, c.Trusted = strconv.Itoa(i), strconv.Itoa(i), i < each
		all.Add(1)
		p.Submit(c, func(r prober.Report) {
			defer all.Done()
			assert.Equal(t, prober.Done, r.Outcome, "%v", &r)
			mu.Lock()
			defer mu.Unlock()
			started = append(started, c.Trusted)
		})
	}
	all.Wait()
	early := slices.Index(started, false)
	require.Positive(t, early)
	assert.Less(t, early, each/2)
	trusted := 0
	for _, isTrusted := range started[:each] {
		if isTrusted {
			trusted++
		}
	}
	assert.Greater(t, trusted, each*8/10, "most of the first ones are trusted")
}

func FuzzLinks(f *testing.F) {
	f.Add([]byte("\x01\x00\x02\x007ab\x00\x02\x00\x00\x0078\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, output []byte) {
		size := 0
		for _, link := range (&prober.StepResult{Output: output}).Links() {
			size += 4 + len(link.Name) + len(link.Target)
		}
		assert.LessOrEqual(t, size, len(output))
	})
}

func FuzzRecords(f *testing.F) {
	f.Add(append([]byte("\x18\x00\x00\x00"), make([]byte, 44)...))
	f.Add([]byte(strings.Repeat("\xff", 30)))
	f.Fuzz(func(t *testing.T, output []byte) {
		size := 0
		for record := range iter.Seq[[]byte](prober.Records(output)) {
			require.GreaterOrEqual(t, len(record), 24)
			size += len(record)
		}
		assert.LessOrEqual(t, size, len(output))
	})
}

func knownBy(magics []uint64) *prober.KnownMounts {
	known := &prober.KnownMounts{}
	copy(known.Magics[:], magics)
	return known
}
