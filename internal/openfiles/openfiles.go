// Package openfiles tells what other processes have open, and how they were started. Helper
// processes look at it: reading a link or an fdinfo of /proc/PID/fd holds the file for a moment.
// The helper can become the last to hold it, and then closes it. On a dead server that takes for
// ever.
package openfiles

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
)

const (
	// readerKey is the key of all helpers that look, so that never more than one hangs. Helpers
	// that read command lines have a key of their own: they wait for the memory of processes, and
	// must not keep others from looking.
	readerKey      = "host open files"
	commandLineKey = "host command lines"
	mapsKey        = "host memory maps"
	// readerTimeout is when a helper is given up.
	readerTimeout = 2 * time.Second
	// directoriesPerPlan and infosPerPlan are how many a helper looks at. Each takes
	// three of the 32 steps that a plan can have.
	directoriesPerPlan = 10
	infosPerPlan       = 10
	maxInfo            = 64 << 10 // bytes of an fdinfo file
	maxStack           = 16 << 10 // bytes of a stack file
	maxCommandLine     = 64 << 10 // bytes
	maxMaps            = 8 << 20  // bytes of a maps file
	// targetsPerPlan is how many links a helper reads. Each takes two of the 16 pages that a
	// plan can have.
	targetsPerPlan = 7
)

// Reader looks at other processes' open files.
type Reader struct {
	Prober *prober.Prober
	Proc   string // where procfs is mounted
}

// Links are what one directory of descriptors holds.
type Links struct {
	Links []prober.Link
	Errno syscall.Errno // why it could not be read to its end; ENOENT: the process has ended
}

// MayNot reports whether the directory could not be read since this process may not look there:
// [Hindrance] tells why.
func (l *Links) MayNot() bool { return l.Errno == unix.EACCES || l.Errno == unix.EPERM }

// Hindrance tells why this process may not look at what the processes of others have open.
func Hindrance() string {
	const needed = 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_DAC_READ_SEARCH
	if _, permitted := prober.OwnCapabilities(); permitted&needed != needed {
		return "it takes CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH, as root has them"
	}
	if _, says := procfs.OwnConfinement(); says != "" {
		return says
	}
	return "a security module or a user namespace protects them"
}

// Links reads directories below procfs such as PID/fd or PID/task/TID/fd. Of each it reads at
// most limit links, only those whose target begins with the prefix of at most 8 bytes. An
// error says that not all were read.
func (r *Reader) Links(directories []string, prefix string, limit int) ([]Links, error) {
	all := make([]Links, 0, len(directories))
	for len(directories) > 0 {
		n := min(len(directories), directoriesPerPlan)
		p := r.plan()
		steps := make([][2]int, n)
		for i, directory := range directories[:n] {
			fd := p.Add(prober.Open(prober.CWD(), filepath.Join(r.Proc, directory), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0).Optional().Silent())
			steps[i] = [2]int{fd, p.Add(prober.ReadLinks(prober.ResultOf(fd), prefix, limit).Optional())}
			p.Add(prober.Close(prober.ResultOf(fd)).Optional().Silent())
		}
		report, err := r.run(readerKey, p)
		if err != nil {
			return all, err
		}
		for _, step := range steps {
			all = append(all, linksOf(report.Step(step[0]), report.Step(step[1])))
		}
		directories = directories[n:]
	}
	return all, nil
}

// linksOf returns the result of the steps of one directory. opened is there only if it failed.
func linksOf(opened, read *prober.StepResult) Links {
	switch {
	case opened != nil:
		return Links{Errno: opened.Errno}
	case read == nil:
		return Links{Errno: unix.ESRCH}
	}
	return Links{Links: read.Links(), Errno: read.Errno}
}

// Infos reads files below procfs such as PID/fdinfo/FD. What could not be read is nil.
func (r *Reader) Infos(files []string) ([][]byte, error) { return r.files(readerKey, files, maxInfo) }

// Targets reads links below procfs such as PID/cwd. Those that could not be read are empty.
func (r *Reader) Targets(links []string) ([]string, error) {
	all := make([]string, 0, len(links))
	for some := range slices.Chunk(links, targetsPerPlan) {
		p := r.plan()
		for _, link := range some {
			p.Add(prober.Readlink(prober.CWD(), filepath.Join(r.Proc, link)).Optional())
		}
		first := len(p.Steps) - len(some)
		report, err := r.run(readerKey, p)
		if err != nil {
			return all, err
		}
		for i := range some {
			all = append(all, string(contentOf(report.Step(first+i))))
		}
	}
	return all, nil
}

// Maps reads what processes have mapped, proc_pid_maps(5); this waits for their memory. What
// could not be read is nil.
func (r *Reader) Maps(pids []int) ([][]byte, error) {
	return r.files(mapsKey, filesOf(pids, "maps"), maxMaps)
}

// filesOf returns the paths, below procfs, of the files of that name of processes.
func filesOf(pids []int, name string) []string {
	files := make([]string, len(pids))
	for i, pid := range pids {
		files[i] = filepath.Join(strconv.Itoa(pid), name)
	}
	return files
}

// CommandLines reads the arguments of processes, proc_pid_cmdline(5). Those that could not
// be read have none.
func (r *Reader) CommandLines(pids []int) ([][]string, error) {
	contents, err := r.files(commandLineKey, filesOf(pids, "cmdline"), maxCommandLine)
	all := make([][]string, len(contents))
	for i, content := range contents {
		if len(content) > 0 {
			all[i] = strings.Split(strings.TrimSuffix(string(content), "\x00"), "\x00")
		}
	}
	return all, err
}

func (r *Reader) files(key string, files []string, limit int) ([][]byte, error) {
	all := make([][]byte, 0, len(files))
	for len(files) > 0 {
		n := min(len(files), infosPerPlan)
		p := r.plan()
		steps := make([]int, n)
		for i, file := range files[:n] {
			steps[i] = p.ReadFileIfAny(filepath.Join(r.Proc, file), limit)
		}
		report, err := r.run(key, p)
		if err != nil {
			return all, err
		}
		for _, step := range steps {
			all = append(all, contentOf(report.Step(step)))
		}
		files = files[n:]
	}
	return all, nil
}

// Task is where a task waits and works.
type Task struct {
	Cwd   string // its working directory, raw bytes; empty: unknown
	Stack string // where in the kernel it is; empty without CAP_SYS_ADMIN
}

// Task looks at a task. What may not be seen is empty.
func (r *Reader) Task(pid, tid int) (Task, error) {
	dir := filepath.Join(r.Proc, strconv.Itoa(pid), "task", strconv.Itoa(tid))
	p := r.plan()
	p.SeeKernelStacks()
	cwd := p.Add(prober.Readlink(prober.CWD(), filepath.Join(dir, "cwd")).Optional())
	stack := p.ReadFileIfAny(filepath.Join(dir, "stack"), maxStack)
	report, err := r.run(readerKey, p)
	if err != nil {
		return Task{}, err
	}
	return Task{Cwd: string(contentOf(report.Step(cwd))), Stack: string(contentOf(report.Step(stack)))}, nil
}

func contentOf(s *prober.StepResult) []byte {
	if s == nil || s.Errno != 0 {
		return nil
	}
	return s.Output
}

func (r *Reader) plan() *prober.Plan {
	p := &prober.Plan{Timeout: readerTimeout}
	p.SeeOtherProcesses()
	return p
}

// run has a helper carry the plan out, unless one hangs already.
func (r *Reader) run(key string, p *prober.Plan) (*prober.Report, error) {
	report := r.Prober.Run(prober.Check{Key: key, Group: key, Trusted: true, Independent: true, Essential: true, Plan: p})
	if report.Outcome != prober.Done {
		err := report.Err
		if err == nil {
			err = fmt.Errorf("helper process %d is %v", report.PID, report.Outcome)
		}
		return nil, fmt.Errorf("looking at other processes, %s: %w", key, err)
	}
	return &report, nil
}

// MountID is the number of the mount that an open file is on, by its fdinfo file.
func MountID(info []byte) (id int, found bool) {
	_, rest, ok := bytes.Cut(info, []byte("\nmnt_id:\t"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	id, err := strconv.Atoi(string(line))
	return id, ok && err == nil
}
