package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenarios"
)

// run is one scenario under way.
type run struct {
	lab      *lab
	observer *observer
	others   []*observer       // on clients of a crowd
	mounts   []string          // mount points' names, globs standing for many
	sources  map[string]string // of mounts that a line has made, by name
	gone     []string          // those that were unmounted
	result   *report.Result
	nevers   []never
	// began is when the last thing was done: what is reported from then on is
	// judged.
	began, observed time.Time
	clocked         bool // something was done to the clocks since the last judgment
	checkRepeated   bool // and ever
	phase           int
	after           string // what was done last that is no fault of a mount
}

// never is a statement to be judged at the end.
type never struct {
	since     time.Time
	statement *scenario.Statement
	mount     string
}

// run runs the scenario of that name from a fresh client to a clean lab.
func (l *lab) run(name string) *report.Result {
	began := time.Now()
	r := &run{lab: l, result: &report.Result{Scenario: name}, sources: make(map[string]string)}
	err := r.all(name)
	for _, o := range r.others {
		err = errors.Join(err, o.stop(stopLimit))
	}
	if r.observer != nil {
		err = errors.Join(err, r.observer.stop(stopLimit))
	}
	r.note(err)
	if err != nil && l.ganesha != nil {
		r.note(errors.New(l.ganesha.saidByGanesha()))
	}
	r.note(l.setClockRight())
	r.note(l.reset())
	if counts := r.result.Count(); counts.Failed > 0 && r.observer != nil {
		r.result.Log = r.observer.said()
	}
	r.result.Seconds = time.Since(began).Seconds()
	return r.result
}

func (r *run) note(err error) {
	if err != nil {
		r.result.Errors = append(r.result.Errors, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
}

func (r *run) all(name string) error {
	s, err := scenarios.Load(name)
	if err != nil {
		return err
	}
	r.result.Title = s.Title
	client, err := r.lab.newClient("client")
	if err != nil {
		return err
	}
	r.observer = newObserver(client)
	for version, options := range map[string]string{"v3": "vers=3", "v4": "vers=4.2"} {
		if err := r.mount("healthy-"+version, "server2:/srv/healthy/"+version, options); err != nil {
			return err
		}
	}
	for steps := s.Steps; len(steps) > 0; {
		if steps[0].Statement == nil {
			if err := r.step(steps[0]); err != nil {
				return fmt.Errorf("line %d: %s: %w", steps[0].Line, steps[0].Verb, err)
			}
			steps = steps[1:]
			continue
		}
		n := slices.IndexFunc(steps, func(s scenario.Step) bool { return s.Statement == nil })
		if n < 0 {
			n = len(steps)
		}
		var statements []*scenario.Statement
		for _, step := range steps[:n] {
			statements = append(statements, step.Statement)
			if step.Verb == "never" {
				r.expectNever(step.Statement)
			}
		}
		r.judge(slices.DeleteFunc(statements, func(st *scenario.Statement) bool {
			return slices.ContainsFunc(r.nevers, func(n never) bool { return n.statement == st })
		}))
		r.result.Lines = r.observer.last()
		steps = steps[n:]
	}
	r.judgeNevers()
	return nil
}

// step does what a line says.
func (r *run) step(s scenario.Step) (err error) {
	a := append(slices.Clone(s.Arguments), "", "", "", "")
	l := r.lab
	switch s.Verb {
	case "mount":
		return r.mountStep(s.Arguments)
	case "many":
		return r.many(a[0], a[1], a[2], a[3])
	case "crowd":
		return r.crowd(a[0], a[1], a[2], a[3])
	case "umount":
		err = r.observer.host.do("umount", "-i", "-f", "-l", "/mnt/"+a[0])
		r.mounts = slices.DeleteFunc(r.mounts, func(m string) bool { return m == a[0] })
		r.gone = append(r.gone, a[0])
	case "walk":
		err = r.walk(a[0])
	case "expire":
		err = r.expire(a[0])
	case "option":
		r.observer.options[a[0]] = append(r.observer.options[a[0]], strings.Join(s.Arguments[1:], " "))
		return nil
	case "observe":
		return r.observe(a[0])
	case "restart":
		err = r.restart(a[0])
	case "cut", "drop":
		err = l.firewall(a[0], a[1], "DROP")
	case "reject":
		err = l.firewall(a[0], a[1], "REJECT")
	case "vanish":
		err = l.vanish()
	case "heal":
		err = l.heal()
	case "statd":
		err = l.on(a[0], func(h *host) error { return l.statd(h, a[1]) })
	case "rpcbind":
		err = l.on(a[0], func(h *host) error { return l.rpcbind(h, a[1]) })
	case "ganesha":
		err = l.startGanesha()
	case "nfsd":
		if a[0] == "stop" {
			err = l.server.do("rpc.nfsd", "0")
		} else {
			grace := shortGrace
			if a[1] == "grace" {
				grace = longGrace
			}
			err = l.server.startNFSD(grace)
			l.graceEnds = graceEnd(grace)
		}
	case "mountd":
		err = l.mountd(a[0])
	case "unexport":
		err = l.unexport(a[0])
	case "export":
		err = l.exportAs(a[0], "")
	case "fsid":
		err = l.exportAs(a[0], ",fsid="+a[1])
	case "mkdir":
		err = l.mkdir(a[0])
	case "rmdir":
		err = os.RemoveAll(a[0]) // with the canaries in it
	case "nest":
		err = l.nest(a[0])
	case "refer":
		err = l.refer(a[0])
	case "freeze":
		err = l.freeze(a[0], fifreeze)
	case "thaw":
		err = l.freeze(a[0], fithaw)
	case "fill":
		err = l.fill(a[0])
	case "drain":
		err = os.Remove(filepath.Join(a[0], "filler"))
	case "lock":
		err = r.lock(a[0], a[1], a[2])
	case "undelegated":
		err = l.expectDelegation("/lock-"+a[0], false)
	case "twin":
		err = r.twin(a[0], a[1])
	case "proxy":
		err = l.on(a[0], func(h *host) error { return r.proxy(h, a[1]) })
	case "forget":
		err = l.forget(a[0])
	case "clear":
		err = unlockFilesystem(a[0])
	case "unlock":
		err = l.on(a[0], func(h *host) error { return h.endHolders() })
	case "crash":
		err = l.firewall("client2", "", "DROP")
		for _, pid := range l.clients["client2"].holders() {
			err = errors.Join(err, kill(pid))
		}
	case "reboot":
		err = l.heal()
	case "dirty":
		err = r.hold(r.observer.host, asDirty, "/mnt/"+a[0]+"/dirty-"+a[0])
	case "clock":
		return r.setClock(a[0])
	case "suspend":
		return r.suspend(a[0])
	case "tests":
		return r.tests(a[0])
	case "alert":
		return r.alert(a[0])
	case "wait":
		var d time.Duration
		if d, err = time.ParseDuration(a[0]); err == nil {
			time.Sleep(d)
		}
		return err
	case "recover":
		r.recover()
		return nil
	default:
		return fmt.Errorf("the guest can't do that")
	}
	r.began = time.Now()
	return err
}

// restart stops the program and starts it again. It must be gone within the
// time systemd and Telegraf have patience at least.
func (r *run) restart(name string) error {
	began := time.Now()
	r.after = "the restart"
	if err := r.observer.stop(stopLimit); err != nil {
		return err
	}
	row := r.lastRow("")
	row.Checks = append(row.Checks, report.Check{
		What: name + " stops", Want: fmt.Sprintf("gone within %v", stopLimit),
		Got: fmt.Sprintf("gone after %.1f s", time.Since(began).Seconds()), OK: true})
	return r.observer.start()
}

// on does something on a host, which is made if it is not there.
func (l *lab) on(name string, do func(*host) error) error {
	if name == "server" {
		return do(l.server)
	}
	h := l.clients[name]
	if h == nil {
		var err error
		if h, err = l.newClient(name); err != nil {
			return err
		}
	}
	return do(h)
}

func (r *run) mountStep(a []string) error {
	switch {
	case a[0] == "all":
		for _, standard := range scenario.Standard() {
			if err := r.mount(standard[0], "server:/srv/data", standard[1]); err != nil {
				return err
			}
		}
		return nil
	case len(a) != 3:
		return errors.New("want NAME SERVER:PATH OPTIONS")
	}
	return r.mount(a[0], a[1], a[2])
}

func (r *run) mount(name, source, options string) error {
	if err := r.lab.provideCanary(name, source); err != nil {
		return err
	}
	r.mounts, r.sources[name] = append(r.mounts, name), source
	return r.observer.host.mount(name, source, options)
}

// provideCanary makes the file that is locked, and can be read, on a mount of this name. One that lies in another
// has none.
func (l *lab) provideCanary(name, source string) error {
	file := "/srv/data/lock-" + name
	switch {
	case strings.Contains(name, "/"):
		return nil
	case l.ganesha != nil && source == "ganesha:"+ganeshaExport:
		file = l.ganesha.path(ganeshaExport + "/lock-" + name)
	case !strings.HasSuffix(source, ":/srv/data") && !strings.HasPrefix(source, "server:/srv/data/"):
		return nil
	}
	if _, err := os.Stat(file); err == nil {
		return nil // a client may have a delegation of it, for which opening it would wait
	}
	return errors.Join(os.WriteFile(file, []byte("canary\n"), 0o666), os.Chmod(file, 0o666))
}

func (h *host) mount(name, source, options string) error {
	target := "/mnt/" + name
	if !strings.Contains(name, "/") { // in another mount it is there
		if err := os.MkdirAll(target, 0o755); err != nil {
			return err
		}
	}
	arguments := []string{"-t", "nfs", "-o", options, source, target}
	if strings.Contains(options, "addr=") { // as in a container, where nobody starts rpc.statd
		arguments = append([]string{"-i"}, arguments...)
	}
	return h.do("mount", arguments...)
}

// walk has the kernel mount what the server has there.
func (r *run) walk(name string) error {
	if err := r.observer.host.do("ls", "/mnt/"+name); err != nil {
		return err
	}
	if mounted, err := r.observer.host.mounted("/mnt/" + name); err != nil || !mounted {
		return errors.Join(err, fmt.Errorf("nothing is mounted on /mnt/%s", name))
	}
	r.mounts = append(r.mounts, name)
	return nil
}

// expire waits until the kernel has unmounted what it has mounted itself.
func (r *run) expire(name string) error {
	r.mounts = slices.DeleteFunc(r.mounts, func(m string) bool { return m == name })
	return poll(4*submountTimeout, func() error {
		mounted, err := r.observer.host.mounted("/mnt/" + name)
		if mounted {
			err = fmt.Errorf("/mnt/%s is still mounted", name)
		}
		return err
	})
}

// many mounts COUNT times; the mounts count as one, named NAME-*.
func (r *run) many(count, name, source, options string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	for i := range n {
		if err := r.observer.host.mount(fmt.Sprintf("%s-%d", name, i+1), source, options+",nosharecache"); err != nil {
			return err
		}
	}
	r.mounts = append(r.mounts, name+"-*")
	return nil
}

// crowd makes COUNT more clients, with three mounts and a vfsprobe of their own
// each, which all lock one canary. The mounts count as one, named NAME-*.
func (r *run) crowd(count, name, source, options string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	if err := r.lab.provideCanary(name, source); err != nil {
		return err
	}
	for i := range n {
		h, err := r.lab.newClient(clientName(i + 3))
		if err != nil {
			return err
		}
		o := newObserver(h)
		// All of them share one CPU.
		o.kept, o.interval, o.timeout = r.observer.kept, 8*time.Second, "15s"
		o.options["nfslock"] = []string{fmt.Sprintf("canary = %q", "lock-"+name)}
		r.others = append(r.others, o)
		if err := o.configure(); err != nil {
			return err
		}
		const mounts = 3 // three superblocks lock what three hosts would
		for k := range mounts {
			if err := h.mount(fmt.Sprintf("%s-%d", name, i*mounts+k+1), source, options+",nosharecache"); err != nil {
				return err
			}
		}
	}
	r.mounts = append(r.mounts, name+"-*")
	return nil
}

// paths are the mount points a name or glob stands for.
func paths(mount string) []string {
	switch {
	case mount == scenario.Host:
		return []string{""}
	case !strings.Contains(mount, "*"):
		return []string{"/mnt/" + mount}
	}
	found, _ := filepath.Glob("/mnt/" + mount) // of directories of the machine's own file system
	return found
}

func (r *run) observe(how string) error {
	r.observer.prometheus = how == "prometheus"
	r.observer.telegraf = r.observer.prometheus || how == "telegraf"
	if err := r.observer.configure(); err != nil {
		return err
	}
	if how != "at-once" {
		time.Sleep(time.Until(r.lab.graceEnds))
	}
	for _, o := range append(r.others, r.observer) {
		r.observed = time.Now()
		if err := o.start(); err != nil {
			return err
		}
		time.Sleep(o.interval / 8)
	}
	if r.observer.prometheus {
		if err := r.scrape(); err != nil {
			return err
		}
	}
	err := poll(deadline, func() error {
		for _, mount := range r.mounts {
			// What must happen before or after the first lock depends on it, for which a busy machine
			// may have no time at first.
			if _, ok := r.settled(r.observed, mount, "nfslock", "diagnosis", func(d string) bool { return anything(d) && d != "unknown" }); !ok {
				return fmt.Errorf("nfslock has not tried the locks of %s", mount)
			}
			if _, ok := r.settledAt(r.observed, mount, okOnly); !ok {
				return fmt.Errorf("%s is %s before anything was done", mount, r.latest(r.observed, mount, "mountstat", "result"))
			}
		}
		return nil
	})
	r.began = time.Now()
	return err
}

// mountAlike mounts on another client what the observed one has, or would have of that name, and
// without its proxy.
func (r *run) mountAlike(h *host, mount string) error {
	options, source := "vers=3", "server:/srv/data"
	if own := r.sources[mount]; strings.HasPrefix(own, "ganesha:") {
		source = own
	}
	if strings.HasPrefix(mount, "v4") {
		options = "vers=4.2"
	}
	return errors.Join(r.lab.provideCanary(mount, source), h.mount(mount, source, options))
}

// lock takes a lock and holds it, or opens the file to get a delegation.
func (r *run) lock(on, mount, how string) error {
	return r.lab.on(on, func(h *host) error {
		if on == "client2" {
			if err := r.mountAlike(h, mount); err != nil {
				return err
			}
		}
		err := r.hold(h, asHold, "/mnt/"+mount+"/lock-"+mount, how)
		if how == "delegated" {
			err = errors.Join(err, r.lab.expectDelegation("/lock-"+mount, true))
		}
		return err
	})
}
