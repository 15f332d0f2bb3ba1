package host

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/prober"
)

const (
	// linksPerPlan is how many links a helper reads. Each takes two of the 16 pages that
	// a plan can have. Directories and files take three of its 32 steps.
	linksPerPlan = 7
	filesPerPlan = 9
	// maxLinks is how many links are followed in a path, path_resolution(7).
	maxLinks = 40
)

// Files are the host's files, as helper processes see them. Paths are the host's. An error
// says that a helper did not answer; what the kernel refused is in the results.
type Files struct {
	Host      *Host
	Key       string           // of the helpers, of which never more than one hangs
	Timeout   time.Duration    // of each helper
	Namespace string           // the mount namespace in which the paths are; empty: see [Roots.Where]
	Own       bool             // the paths are this process's, not the host's
	Table     *mounts.Snapshot // what is mounted
}

// A Link is the target of a symbolic link, as it is written, or why that is not known.
// EINVAL says that it is no link.
type Link struct {
	Target string
	Errno  syscall.Errno
}

// Exists reports whether a file of that name exists.
func (l Link) Exists() bool { return l.Errno == 0 || l.Errno == unix.EINVAL }

// A Content is what was read of a file or a directory, and why the rest was not.
type Content struct {
	Output []byte
	Errno  syscall.Errno
}

// Names are the names in a directory.
func (c Content) Names() []string { return (&prober.StepResult{Output: c.Output}).Names() }

// Links reads symbolic links. Links in the directories of the paths are followed.
func (f *Files) Links(paths []string) ([]Link, error) {
	directories := make([]string, len(paths))
	for i, name := range paths {
		directories[i] = path.Dir(name)
	}
	directories, err := f.locate(directories)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(paths))
	for i, name := range paths {
		names[i] = path.Join(directories[i], path.Base(name))
	}
	found := make([]Link, len(paths))
	err = f.batches(names, linksPerPlan, func(p *prober.Plan, name string) int {
		return p.Add(prober.Readlink(prober.CWD(), name).Optional())
	}, func(i int, r *prober.Report, step int) { found[i] = linkOf(r.Step(step)) })
	return found, err
}

// List reads at most limit bytes of each directory.
func (f *Files) List(directories []string, limit int) ([]Content, error) {
	return f.contents(directories, func(p *prober.Plan, name string) int {
		directory := prober.ResultOf(p.Add(prober.Open(prober.CWD(), name, unix.O_RDONLY|unix.O_DIRECTORY, 0).Optional().MergeWithNext()))
		names := p.Add(prober.ReadDirectory(directory, limit).Optional())
		p.Add(prober.Close(directory).Optional().Silent())
		return names
	})
}

// Read reads at most limit bytes of each file.
func (f *Files) Read(files []string, limit int) ([]Content, error) {
	return f.contents(files, func(p *prober.Plan, name string) int { return p.ReadFileIfAny(name, limit) })
}

// contents has files or directories read. add adds the step that opens one and, after it, the
// step that reads it; it returns the index of the latter.
func (f *Files) contents(paths []string, add func(*prober.Plan, string) int) ([]Content, error) {
	paths, err := f.locate(paths)
	if err != nil {
		return nil, err
	}
	found := make([]Content, len(paths))
	err = f.batches(paths, filesPerPlan, add, func(i int, r *prober.Report, step int) {
		if read := r.Step(step); read != nil {
			found[i] = Content{Output: read.Output, Errno: read.Errno}
		}
		if opened := r.Step(step - 1); opened != nil && opened.Errno != 0 {
			found[i].Errno = opened.Errno
		}
	})
	return found, err
}

// locate returns the paths without symbolic links where the kernel can't follow them: below a
// prefix, links lead out of the host's files.
func (f *Files) locate(paths []string) ([]string, error) {
	if f.Namespace != "" || f.Own || f.Host.MountPrefix == "" {
		return paths, nil
	}
	resolved := f.Resolve(paths)
	if i := slices.Index(resolved, ""); i >= 0 {
		return nil, fmt.Errorf("following the links in %s: %w", paths[i], errUnanswered)
	}
	return resolved, nil
}

// batches makes plans for size paths each, and hands what the steps have found to take.
func (f *Files) batches(paths []string, size int, add func(*prober.Plan, string) int, take func(i int, r *prober.Report, step int)) error {
	for first := 0; first < len(paths); first += size {
		p, where := f.plan()
		entered := len(p.Steps)
		batch := paths[first:min(first+size, len(paths))]
		steps := make([]int, len(batch))
		for i, name := range batch {
			steps[i] = add(p, where(name))
		}
		r := f.Host.Prober.Run(prober.Check{Key: f.Key, Group: "host files", Trusted: true, Independent: true, Plan: p})
		if err := unanswered(&r, entered); err != nil {
			return err
		}
		for i, step := range steps {
			take(first+i, &r, step)
		}
	}
	return nil
}

var errUnanswered = errors.New("it was not answered")

// unanswered returns why a helper has no result. The first entered steps are those that lead
// to where it looks.
func unanswered(r *prober.Report, entered int) error {
	switch failed := r.Failed(); {
	case failed != nil && failed.Index < entered:
		return fmt.Errorf("%s: %w", failed.Name, failed.Errno)
	case r.Outcome != prober.Done:
		return errors.Join(errUnanswered, r.Err)
	}
	return nil
}

// plan begins a plan, and returns a function that tells how the plan names the host's paths.
func (f *Files) plan() (*prober.Plan, func(string) string) {
	p := &prober.Plan{Timeout: f.Timeout}
	switch {
	case f.Namespace != "":
		p.EnterMountNS(f.Namespace)
	case !f.Own:
		p.SearchBelow(f.Host.MountPrefix)
		return p, f.Host.Where
	}
	return p, func(name string) string {
		p.SearchBelow(name)
		return name
	}
}

func linkOf(s *prober.StepResult) Link {
	switch {
	case s == nil:
		return Link{Errno: unknownLink}
	case s.Errno != 0:
		return Link{Errno: s.Errno}
	}
	return Link{Target: string(s.Output)}
}

// Resolve follows the symbolic links in all components of absolute paths, as the kernel does
// when it is asked to mount something there, up to a component that does not exist. It does not
// look into what autofs has mounted, or would mount. A path is empty where a helper did not
// answer. Each mount has helpers of its own, so that one that hangs costs the others nothing.
func (f *Files) Resolve(paths []string) []string {
	walks := make([]walk, len(paths))
	for i, name := range paths {
		walks[i] = walk{at: "/", rest: strings.Split(name, "/")}
	}
	known := make(map[string]Link)
	for {
		wanted := make(map[string]*mounts.Mount) // names, and what they lie on
		for i := range walks {
			if name := walks[i].advance(f.Table, known); name != "" {
				wanted[name] = f.Table.Holding(name)
			}
		}
		if len(wanted) == 0 {
			break
		}
		f.askLinks(wanted, known)
	}
	resolved := make([]string, len(paths))
	for i := range walks {
		if !walks[i].unanswered {
			resolved[i] = path.Join(walks[i].at, path.Join(walks[i].rest...))
		}
	}
	return resolved
}

// unknownLink is the Errno of a link about which a helper has reported nothing.
const unknownLink = unix.EINTR

// askLinks reads links, with helpers of its own for each mount, all at the same time.
func (f *Files) askLinks(wanted map[string]*mounts.Mount, known map[string]Link) {
	names := make(map[*mounts.Mount][]string)
	for name, on := range wanted {
		names[on] = append(names[on], name)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	for on, names := range names {
		for first := 0; first < len(names); first += linksPerPlan {
			batch := names[first:min(first+linksPerPlan, len(names))]
			p, where := f.plan()
			steps := make([]int, len(batch))
			for i, name := range batch {
				steps[i] = p.Add(prober.Readlink(prober.CWD(), where(name)).Optional())
			}
			all.Add(1)
			f.Host.Prober.Submit(f.linksCheck(on, p), func(r prober.Report) {
				defer all.Done()
				mu.Lock()
				defer mu.Unlock()
				for i, name := range batch {
					known[name] = linkOf(r.Step(steps[i]))
				}
			})
		}
	}
	all.Wait()
}

// linksCheck is a check that reads links on one mount, or links whose mount is not known.
func (f *Files) linksCheck(on *mounts.Mount, p *prober.Plan) prober.Check {
	check := prober.Check{Key: f.Key + " links", Group: "host files", Trusted: true, Independent: true, Plan: p}
	if on != nil && on.ID != 0 && !on.Independent() {
		check.Key += fmt.Sprint(" ", on.ID)
		check.Group, check.Independent = on.FateGroup(), false
		p.Killable, p.OutlivesServer = on.NFS(), f.Table.NeedsFUSE(on)
	}
	return check
}

// A walk is how far a path was followed.
type walk struct {
	at         string   // without links
	rest       []string // components to come
	links      int      // that were followed
	ended      bool
	unanswered bool
}

// advance follows the path as far as it is known, and returns the name that must be looked at
// next, or nothing at the end.
func (w *walk) advance(table *mounts.Snapshot, known map[string]Link) (name string) {
	for !w.ended && len(w.rest) > 0 {
		component := w.rest[0]
		next := path.Join(w.at, component)
		switch component {
		case "", ".", "..":
			w.at, w.rest = next, w.rest[1:]
			continue
		}
		on := table.At(next)
		if on != nil && on.FSType != "autofs" { // no link can be mounted on
			w.at, w.rest = next, w.rest[1:]
			continue
		}
		if on == nil {
			on = table.Holding(next)
		}
		if on != nil && (on.FSType == "autofs" || on.OnDemand) {
			break
		}
		link, asked := known[next]
		switch {
		case !asked:
			return next
		case link.Errno == unix.EINVAL:
			w.at, w.rest = next, w.rest[1:]
			continue
		case link.Errno == unknownLink:
			w.unanswered = true
		case link.Errno == 0 && w.links < maxLinks:
			w.follow(link.Target)
			continue
		}
		break
	}
	w.ended = true
	return ""
}

// follow replaces the next component by a link's target.
func (w *walk) follow(target string) {
	w.links++
	if strings.HasPrefix(target, "/") {
		w.at = "/"
	}
	w.rest = append(strings.Split(target, "/"), w.rest[1:]...)
}
