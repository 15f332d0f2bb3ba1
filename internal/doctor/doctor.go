// Package doctor looks at what is around the plugin: the Telegraf that should run
// it, Telegraf's systemd unit, the capabilities that the unit gives, and the kernel. For
// each thing that is wrong or missing it says how that shows, and what cures it.
//
// It makes ordinary calls on the files it looks at, which may hang. Its caller has
// to run it in a process that can be left behind.
package doctor

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/vfsprobe/vfsprobe/internal/checkup"
	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/printable"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// Options say where to look. The zero value but for CheckConfig is this host.
type Options struct {
	Root           string // of the host's files; "/" by default
	Proc, Sys, Dev string // where these are mounted; /proc, /sys and /dev by default
	TelegrafConfig string // a directory or file below Root; what Telegraf's unit says by default
	Telegraf       string // its program; the one on PATH by default
	Self           bool   // judge the privileges of this process, not of Telegraf's
	// Contained says that this is an application's container. If a Telegraf is set up in
	// it, that one is examined, whatever Root is.
	Contained bool
	// Own is where the container's own files are; "/" by default.
	Own string
	// SeccompRefuses names the system calls that a filter refuses this process; it may be nil.
	SeccompRefuses func() []string
	// CheckConfig is asked about the plugin's configuration file.
	CheckConfig func(file string) (Configured, error)
	// ShowUnit asks systemd for all properties of a unit, as systemctl show prints them; nil
	// where it does not run.
	ShowUnit func(name string) ([]byte, error)
}

// Configured is what the plugin's configuration says of the host.
type Configured struct {
	ExpectNFS *bool // nfslock's expect_nfs; nil: as the host shows
}

// Finding is one thing that was looked at. If its status is not OK, Symptom says
// how it shows, and Cure what to do.
type Finding struct {
	ID      string         `json:"id"` // stable, "telegraf.signal"
	Status  checkup.Status `json:"status"`
	Object  string         `json:"object"` // a file with its line, a capability, a kernel feature
	Says    string         `json:"says"`
	Symptom string         `json:"symptom,omitempty"`
	Cure    string         `json:"cure,omitempty"` // lines to type or to write
	Setting *Setting       `json:"setting,omitempty"`
}

// Report is all that was found.
type Report struct {
	Status   checkup.Status `json:"status"` // the worst
	Code     int            `json:"exit_code"`
	Subject  string         `json:"subject"` // whose privileges were judged
	Findings []Finding      `json:"findings"`
}

// examination is what an examination collects.
type examination struct {
	Options
	findings []Finding
	own      bool // the plugin is a service of its own, for Telegraf
	// contained: Telegraf runs in this container, which no systemd has started.
	contained    bool
	serves       bool // the service runs in this container, too
	telegrafUnit *unit
	prober       *prober.Prober
	table        mounts.View
	configured   Configured
}

func (p *examination) add(f Finding) { p.findings = append(p.findings, f) }

func (p *examination) fine(id, object, format string, arguments ...any) {
	p.add(Finding{ID: id, Object: object, Says: fmt.Sprintf(format, arguments...)})
}

// Run examines. It does not fail: what can't be looked at is a finding.
func Run(o Options) *Report {
	p := &examination{Options: o}
	p.Root = cmp.Or(p.Root, "/")
	p.Proc, p.Sys, p.Dev = cmp.Or(p.Proc, "/proc"), cmp.Or(p.Sys, "/sys"), cmp.Or(p.Dev, "/dev")
	p.prober = prober.New(prober.Options{})
	defer p.prober.Close()
	p.findContainer()
	p.readMountTable()
	if !p.contained {
		p.telegrafUnit = p.readUnit(telegrafUnit)
	}
	all := p.readStanzas(p.sources(p.telegrafUnit))
	p.own = all.connects()
	u := p.examineUnit()
	p.examineTelegraf()
	s := p.subject(u)
	p.examineStanzas(all, s, u)
	if p.contained && p.own {
		p.examineSocket(all)
	}
	if !p.contained || !p.own || p.serves { // else what it lacks, the service's doctor says
		p.examineProfiles()
		p.examineFeatures(s)
		p.examineLocks()
	}
	r := &Report{Subject: s.name}
	for i := range p.findings {
		f := &p.findings[i]
		for _, text := range []*string{&f.Object, &f.Says, &f.Symptom} {
			*text = printable.Terminal(*text)
		}
		var lines []string
		for line := range strings.SplitSeq(f.Cure, "\n") {
			lines = append(lines, printable.Terminal(line))
		}
		f.Cure = strings.Join(lines, "\n")
		if f.Status.Worse(r.Status) {
			r.Status = f.Status
		}
	}
	r.Subject = printable.Terminal(r.Subject)
	r.Findings, r.Code = p.findings, int(r.Status)
	return r
}

// Fix writes a drop-in with all settings that the unit lacks, and as comments what has to be
// done by hand. It changes nothing.
func (r *Report) Fix(w io.Writer) error {
	unit, lines, byHand := "", []string{}, []string{}
	capabilities := make(map[string]Capabilities)
	for i := range r.Findings {
		f := &r.Findings[i]
		switch {
		case f.Status == checkup.OK || f.Cure == "" && f.Setting == nil:
		case f.Setting == nil:
			byHand = append(byHand, f.ID+": "+f.Object+": "+f.Says, "  "+f.Cure)
		default:
			unit = f.Setting.Unit
			for _, line := range f.Setting.Lines {
				if key, value, _ := strings.Cut(line, "="); strings.HasSuffix(key, "Capabilities") || key == "CapabilityBoundingSet" {
					capabilities[key] |= parseCapabilities(value)
				} else {
					lines = append(lines, "# "+f.Symptom, line)
				}
			}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(capabilities)) {
		lines = append(lines, key+"="+capabilities[key].String())
	}
	var b strings.Builder
	if len(lines) > 0 {
		name := strings.TrimSuffix(unit, ".service")
		fmt.Fprintf(&b, "# Nothing was changed. To apply this:\n#   mkdir -p /etc/systemd/system/%s.d\n#   vfsprobe doctor -fix >/etc/systemd/system/%s.d/zz-vfsprobe-doctor.conf\n#   systemctl daemon-reload && systemctl restart %s\n[Service]\n", unit, unit, name)
		b.WriteString(strings.Join(lines, "\n") + "\n")
	} else {
		b.WriteString("# No unit lacks a setting.\n")
	}
	for _, line := range byHand {
		b.WriteString("# by hand: " + strings.ReplaceAll(line, "\n", "\n#   ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// JSON writes the report as one JSON object.
func (r *Report) JSON(w io.Writer) error { return checkup.WriteJSON(w, r) }

// Text writes the report for a person, the worst first.
func (r *Report) Text(w io.Writer, color bool) error {
	t := checkup.NewText(w, color)
	var counts [4]int
	for i := range r.Findings {
		counts[r.Findings[i].Status]++
	}
	t.Line(r.Status, fmt.Sprintf("vfsprobe doctor %v: %d wrong, %d warnings, %d not looked at, %d fine",
		r.Status, counts[checkup.Critical], counts[checkup.Warning], counts[checkup.Unknown], counts[checkup.OK]))
	t.Line(checkup.OK, "Privileges are those of "+r.Subject+".")
	sorted := slices.Clone(r.Findings)
	slices.SortStableFunc(sorted, func(a, b Finding) int {
		switch {
		case a.Status == b.Status:
			return 0
		case a.Status.Worse(b.Status):
			return -1
		}
		return 1
	})
	words := [...]string{checkup.OK: "fine", checkup.Warning: "warning", checkup.Critical: "wrong", checkup.Unknown: "not looked at"}
	for i := range sorted {
		f := &sorted[i]
		if f.Status != checkup.OK {
			t.Line(checkup.OK, "")
		}
		t.Line(f.Status, fmt.Sprintf("%s: %s: %s", words[f.Status], f.Object, f.Says))
		if f.Symptom != "" {
			t.Wrapped(checkup.OK, "symptom: "+f.Symptom)
		}
		for i, line := range strings.Split(f.Cure, "\n") {
			switch {
			case f.Cure == "":
			case i == 0:
				t.Line(checkup.OK, "  cure:    "+line)
			default:
				t.Line(checkup.OK, "           "+line)
			}
		}
	}
	return t.Err()
}
