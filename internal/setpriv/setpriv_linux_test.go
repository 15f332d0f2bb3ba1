package setpriv

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/sandbox"
)

const (
	user         = 61100
	roleVariable = "VFSPROBE_TEST_ROLE"
)

// TestMain is also the process that executes the program, and the program.
func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "sandboxed exec":
		if err := sandbox.Enter(sandbox.Actions()["ENOSYS"], unix.SYS_LANDLOCK_CREATE_RULESET); err != nil {
			fmt.Println(err)
		}
		fallthrough
	case "exec":
		os.Setenv(roleVariable, "program")
		o := Options{ID: user, Keep: os.Args[1], Protected: os.Args[2], Warn: func(err error) { fmt.Println("unprotected:", err) }}
		fmt.Println(Exec(o, "/proc/self/exe", os.Args[3:]))
		os.Exit(1)
	case "program":
		status, _ := os.ReadFile("/proc/self/status")
		os.Stdout.Write(status)
		fmt.Printf("Refused:\t%q\n", refusedCalls())
		fmt.Println("end of status")
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		for _, name := range os.Args[1:] {
			if file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o600); err == nil {
				file.Close()
				fmt.Println("written:", name)
			}
		}
		fmt.Println("became root:", unix.Setuid(0) == nil)
	default:
		os.Exit(m.Run())
	}
}

// refusedCalls are those of tracingCalls, and one of x32, that a filter answers: the kernel has
// another answer for who calls them like this.
func refusedCalls() (refused []string) {
	const none = ^uintptr(0) >> 33 // no process, no descriptor
	var local [1]byte
	vector := unix.Iovec{Base: &local[0], Len: 1}
	at := uintptr(unsafe.Pointer(&vector))
	for name, call := range map[string][7]uintptr{
		"ptrace": {unix.SYS_PTRACE, unix.PTRACE_SEIZE, none}, "pidfd_getfd": {unix.SYS_PIDFD_GETFD, none},
		"process_vm_readv": {unix.SYS_PROCESS_VM_READV, none, at, 1, at, 1}, "process_vm_writev": {unix.SYS_PROCESS_VM_WRITEV, none, at, 1, at, 1},
		"x32": {0x40000000 + unix.SYS_GETPID}, "getpgid": {unix.SYS_GETPGID, none},
	} {
		if _, _, errno := unix.Syscall6(call[0], call[1], call[2], call[3], call[4], call[5], call[6]); errno == unix.EPERM {
			refused = append(refused, name)
		}
	}
	runtime.KeepAlive(&vector)
	slices.Sort(refused)
	return refused
}

// program is one that runs with other privileges, and waits for a newline before it writes.
type program struct {
	status string
	out    *bufio.Reader
	in     io.WriteCloser
}

func start(t *testing.T, keep, protected string, writes ...string) *program {
	t.Helper()
	return startAs(t, "exec", keep, protected, writes...)
}

func startAs(t *testing.T, role, keep, protected string, writes ...string) *program {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("root is needed")
	}
	command := exec.Command("/proc/self/exe", append([]string{keep, protected}, writes...)...)
	command.Env = append(os.Environ(), roleVariable+"="+role)
	out, err := command.StdoutPipe()
	require.NoError(t, err)
	p := &program{out: bufio.NewReader(out)}
	p.in, err = command.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, command.Start())
	t.Cleanup(func() { p.in.Close(); _ = command.Wait() })
	for {
		line, err := p.out.ReadString('\n')
		require.NoError(t, err, p.status)
		if line == "end of status\n" {
			return p
		}
		p.status += line
	}
}

// writes has it write, and returns what it says of that.
func (p *program) writes(t *testing.T) string {
	t.Helper()
	_, err := p.in.Write([]byte("\n"))
	require.NoError(t, err)
	said, err := io.ReadAll(p.out)
	require.NoError(t, err)
	return string(said)
}

func (p *program) field(name string) string {
	_, rest, _ := strings.Cut("\n"+p.status, "\n"+name+":\t")
	value, _, _ := strings.Cut(rest, "\n")
	return value
}

func TestExec_AnotherUserKeepsCapabilities(t *testing.T) {
	closed := filepath.Join(t.TempDir(), "closed")
	for _, one := range []struct {
		keep, ambient string
		becomesRoot   bool
	}{
		{"DAC_READ_SEARCH,cap_setuid", "0000000000000084", true},
		{"DAC_READ_SEARCH", "0000000000000004", false},
		{"", "0000000000000000", false},
	} {
		p := start(t, one.keep, "", closed)
		assert.Equal(t, "61100\t61100\t61100\t61100", p.field("Uid"))
		assert.Equal(t, "61100\t61100\t61100\t61100", p.field("Gid"))
		assert.Empty(t, strings.TrimSpace(p.field("Groups")))
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapAmb"} {
			assert.Equal(t, one.ambient, p.field(set), set)
		}
		assert.Equal(t, "1", p.field("NoNewPrivs"))
		assert.Equal(t, `["pidfd_getfd" "process_vm_readv" "process_vm_writev" "ptrace" "x32"]`, p.field("Refused"))
		assert.Equal(t, fmt.Sprintf("became root: %v\n", one.becomesRoot), p.writes(t), "root's files are not written to")
	}
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	own := &program{status: string(status)}
	assert.Equal(t, own.field("CapPrm"), start(t, "all", "").field("CapAmb"))
}

// What is mounted below a protected directory after the start is protected, too; and it
// is, though everybody may write there, and for who has become root.
func TestExec_ProtectsADirectory(t *testing.T) {
	dir := t.TempDir()
	require.True(t, strings.HasPrefix(dir, "/tmp/"), dir)
	for _, above := range []string{filepath.Dir(dir), dir} {
		require.NoError(t, os.Chmod(above, 0o777))
	}
	elsewhere, err := os.MkdirTemp("/var/tmp", "vfsprobe")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(elsewhere) })
	require.NoError(t, os.Chmod(elsewhere, 0o777))
	mounted := filepath.Join(dir, "mounted")
	require.NoError(t, os.Mkdir(mounted, 0o777))
	writes := []string{filepath.Join(dir, "file"), filepath.Join(mounted, "file"), filepath.Join(elsewhere, "file")}
	for protected, want := range map[string]string{
		"":  "written: " + writes[0] + "\nwritten: " + writes[1] + "\nwritten: " + writes[2] + "\nbecame root: true\n",
		dir: "written: " + writes[2] + "\nbecame root: true\n",
	} {
		p := start(t, "SETUID", protected, writes...)
		if strings.Contains(p.status, "unprotected: ") {
			t.Skip(p.status)
		}
		if err := unix.Mount("later", mounted, "tmpfs", 0, "mode=777"); err != nil {
			t.Skip("mount: ", err)
		}
		assert.Equal(t, want, p.writes(t))
		require.NoError(t, unix.Unmount(mounted, 0))
	}
}

// Where the kernel or a profile knows no Landlock, it is said, and the program runs.
func TestExec_SaysThatNothingIsProtected(t *testing.T) {
	p := startAs(t, "sandboxed exec", "KILL", "/tmp")
	assert.Contains(t, p.status, "unprotected: there is no Landlock: landlock_create_ruleset: function not implemented\n")
	assert.Equal(t, "0000000000000020", p.field("CapEff"))
}

func TestParse(t *testing.T) {
	set, err := parse("BPF, cap_perfmon,Kill")
	require.NoError(t, err)
	assert.Equal(t, uint64(1<<unix.CAP_BPF|1<<unix.CAP_PERFMON|1<<unix.CAP_KILL), set)
	set, err = parse(Watching)
	require.NoError(t, err)
	assert.Zero(t, set&(1<<unix.CAP_SETUID|1<<unix.CAP_SETGID|1<<unix.CAP_KILL|1<<unix.CAP_DAC_OVERRIDE))
	_, err = parse("KILL,NONE_SUCH")
	assert.EqualError(t, err, `capability "NONE_SUCH" is not known`)
}

func FuzzParse(f *testing.F) {
	f.Add("all")
	f.Add("BPF,,cap_kill , x")
	f.Fuzz(func(t *testing.T, list string) {
		if set, err := parse(list); err != nil {
			assert.Zero(t, set)
		}
	})
}
