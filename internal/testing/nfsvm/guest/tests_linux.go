package guest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	testsLimit = 4 * time.Minute
)

// tests runs end-to-end tests on the machine, not on one of the hosts in it. Each
// is a check, which a test that is skipped does not pass.
func (r *run) tests(expression string) error {
	if out, err := exec.Command("modprobe", "fuse").CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe fuse: %w: %s", err, out)
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
		return fmt.Errorf("mounting %s: %w", cgroupRoot, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), testsLimit)
	defer cancel()
	c := exec.CommandContext(ctx, testBinary, "-test.v", "-test.run", expression)
	c.WaitDelay = time.Second
	// The temporary directory is on an ext4, which keeps negative dentries.
	c.Env = append(os.Environ(), "TMPDIR=/srv/data", "VFSPROBE_TEST_REPOSITORY="+testRepository, "VFSPROBE_TEST_BINARY="+vfsprobeBinary)
	out, failed := c.CombinedOutput()
	row := r.lastRow("")
	done := regexp.MustCompile(`(?m)^--- (PASS|FAIL|SKIP): (\w+)`).FindAllSubmatch(out, -1)
	for _, test := range done {
		row.Checks = append(row.Checks, report.Check{What: "test " + string(test[2]), Want: "PASS",
			Got: string(test[1]), OK: string(test[1]) == "PASS"})
	}
	if failed == nil && len(done) == 0 {
		failed = errors.New("no test has this name")
	}
	if failed != nil {
		failed = fmt.Errorf("%w\n%s", failed, out)
	}
	return errors.Join(failed, unix.Unmount(cgroupRoot, unix.MNT_DETACH))
}
