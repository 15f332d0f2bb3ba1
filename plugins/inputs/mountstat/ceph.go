package mountstat

import (
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/cephclient"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// maxCephNames bounds the names of the Ceph clients' directories, in bytes.
const maxCephNames = 16 << 10

// cephClients is what the kernel's Ceph clients showed in debugfs when they were last read.
type cephClients struct {
	*kit
	all     []cephclient.Client
	readIn  uint64 // the last round in which they were
	reading bool
}

// read has helpers read what the Ceph clients show, at most once in each round. There is nothing to
// read where debugfs is not mounted, or is not for this process.
func (c *cephClients) read() {
	if c.reading || c.readIn == c.round {
		return
	}
	c.reading, c.readIn = true, c.round
	directory := cephclient.Directory(c.host.Sys)
	p := &prober.Plan{Timeout: c.policy.timeout / 8}
	p.SearchBelow(directory)
	open := p.Add(prober.Open(prober.CWD(), directory, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0))
	names := p.Add(prober.ReadDirectory(prober.ResultOf(open), maxCephNames))
	c.submit(p, func(r prober.Report) {
		all := r.Step(names).Names()
		switch {
		case r.Outcome != prober.Done:
			c.took(c.all) // on a busy host: what was shown before is more than nothing
		case len(all) > 0:
			c.readFiles(directory, all[:min(len(all), cephclient.MaxClients)])
		default:
			c.took(nil)
		}
	})
}

// readFiles has a helper read the files of clients.
func (c *cephClients) readFiles(directory string, names []string) {
	p := &prober.Plan{Timeout: c.policy.timeout / 8}
	p.SearchBelow(directory)
	steps := make([][4]int, len(names))
	for i, name := range names {
		for j, file := range []string{"monmap", "mdsc", "osdc", "status"} {
			steps[i][j] = p.ReadFileIfAny(filepath.Join(directory, name, file), cephclient.MaxFile)
		}
	}
	c.submit(p, func(r prober.Report) {
		if r.Outcome != prober.Done {
			c.took(c.all)
			return
		}
		content := func(step int) []byte {
			if read := r.Step(step); read != nil {
				return read.Output
			}
			return nil
		}
		var all []cephclient.Client
		for _, s := range steps {
			all = append(all, cephclient.Parse(cephclient.Files{Monmap: content(s[0]), MDSC: content(s[1]), OSDC: content(s[2]), Status: content(s[3])}))
		}
		c.took(all)
	})
}

func (c *cephClients) submit(p *prober.Plan, done func(prober.Report)) {
	c.host.Prober.Submit(prober.Check{Key: "mountstat ceph clients", Group: "ceph clients", Trusted: true, Independent: true, Plan: p}, func(r prober.Report) {
		c.mail.Post(func() { done(r) })
	})
}

func (c *cephClients) took(all []cephclient.Client) {
	c.reading, c.all = false, all
	c.reconsider()
}
