package doctor

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
)

// version of Telegraf.
type version struct{ major, minor int }

func (v version) before(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

func (v version) String() string { return fmt.Sprintf("%d.%d", v.major, v.minor) }

var (
	firstWithExecd = version{1, 14} // Telegraf's CHANGELOG.md, "inputs.execd"
	firstWithLevel = version{1, 32} // likewise, "Allow to provide logging prefixes on stderr"
)

// parseVersion reads what telegraf --version prints, in all its forms since 1.0:
//
//	Telegraf 1.37.2 (git: HEAD@...)
//	Telegraf v1.8.0 (git: release-1.8 ...)
//	Telegraf unknown (git: master abcdef)
func parseVersion(output []byte) (version, bool) {
	found := regexp.MustCompile(`(?m)^Telegraf v?(\d{1,9})\.(\d{1,9})`).FindSubmatch(output)
	if found == nil {
		return version{}, false
	}
	major, _ := strconv.Atoi(string(found[1]))
	minor, _ := strconv.Atoi(string(found[2]))
	return version{major, minor}, true
}

// examineTelegraf asks Telegraf for its version.
func (p *examination) examineTelegraf() {
	program := p.Telegraf
	if program == "" {
		found, err := exec.LookPath(p.host("/usr/bin/telegraf"))
		if err != nil && p.Root == "/" {
			found, err = exec.LookPath("telegraf")
		}
		if err != nil {
			p.fine("telegraf.version", "telegraf", "not found on this host; -telegraf FILE says where it is")
			return
		}
		program = found
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	command := exec.CommandContext(ctx, program, "--version")
	command.WaitDelay = time.Second
	var out bytes.Buffer
	command.Stdout = &out
	command.Env = append(os.Environ(), "TELEGRAF_CONFIG_PATH=")
	err := command.Run()
	v, ok := parseVersion(out.Bytes())
	switch {
	case !ok && err != nil:
		p.add(Finding{ID: "telegraf.version", Status: checkup.Unknown, Object: program, Says: fmt.Sprintf("asking for its version: %v", err)})
	case !ok:
		p.fine("telegraf.version", program, "its version is no release")
	case v.before(firstWithExecd):
		p.add(Finding{ID: "telegraf.version", Status: checkup.Critical, Object: program, Says: fmt.Sprintf("version %v has no execd input, which came with %v", v, firstWithExecd),
			Symptom: "Telegraf ends at start: Undefined but requested input: execd", Cure: "upgrade Telegraf"})
	case v.before(firstWithLevel):
		p.add(Finding{ID: "telegraf.version", Status: checkup.Warning, Object: program, Says: fmt.Sprintf("version %v knows no levels in the log of execd's programs, as %v does", v, firstWithLevel),
			Symptom: "warnings and information of vfsprobe's show as errors in Telegraf's log; metrics are not affected", Cure: "upgrade Telegraf"})
	default:
		p.fine("telegraf.version", program, "version %v has all that vfsprobe needs", v)
	}
}
