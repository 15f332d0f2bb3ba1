package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/report"
)

const (
	nfsPort = 2049
	// firstAlias is the last byte of the first address that the server gets beside its own.
	firstAlias = 100
	// fleetInterval is that of the gathers of a fleet's hosts.
	fleetInterval = 10 * time.Second
	// fleetLimit is how long a fleet may take beyond what it was given.
	fleetLimit = time.Minute
)

// each mounts COUNT times, over a connection each: by another address of the server.
func (r *run) each(count, name, path, options string) error {
	n, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	client := r.observer.host
	r.observer.interval, r.observer.timeout = 8*time.Second, "5s" // they share one CPU
	network := address(1, number(client.name), 0)
	for i := range n {
		alias := strings.TrimSuffix(network, "0") + strconv.Itoa(firstAlias+i)
		if err := r.lab.server.do("ip", "address", "add", alias+"/32", "dev", fmt.Sprintf("c%d", number(client.name))); err != nil {
			return err
		}
		if err := client.mount(fmt.Sprintf("%s-%d", name, i+1), alias+":"+path, options+",nosharecache"); err != nil {
			return err
		}
	}
	r.mounts = append(r.mounts, name+"-*")
	return nil
}

// fleet has COUNT hosts ask the server for a time about their NFSv4 mounts: as vfsprobe has
// them do it, whose mounts are well; or "breath", at each gather and at once. It judges that none of the client's mounts has lost its connection, which the latter
// costs some.
func (r *run) fleet(count, lasts, how string) error {
	limit, err := time.ParseDuration(lasts)
	if err != nil {
		return err
	}
	before, err := r.observer.host.connects()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit+fleetLimit)
	defer cancel()
	ended := make(chan struct{})
	peak := make(chan int, 1)
	go func() { peak <- peakConnections(ended) }()
	// One process would be late for some of its hosts.
	const parts = 10
	each, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	var done fleetReport
	var mu sync.Mutex
	var all sync.WaitGroup
	var errs []error
	for range parts {
		all.Go(func() {
			part, err := r.fleetPart(ctx, each/parts, lasts, how)
			mu.Lock()
			defer mu.Unlock()
			done.Asked += part.Asked
			done.Answered += part.Answered
			errs = append(errs, err)
		})
	}
	all.Wait()
	close(ended)
	most := <-peak
	if err := errors.Join(errs...); err != nil {
		return err
	}
	after, err := r.observer.host.connects()
	if err != nil {
		return err
	}
	r.after = fmt.Sprintf("a fleet of %s", count)
	if how != "" {
		r.after += ", " + how
	}
	row := r.lastRow("")
	row.Checks = append(row.Checks,
		report.Check{What: "connections at a time, at most", Want: "some", Got: strconv.Itoa(most), OK: most > 0},
		report.Check{What: "questions answered", Want: "most", Got: fmt.Sprintf("%d of %d", done.Answered, done.Asked),
			OK: done.Answered*10 > done.Asked*9 || how != ""})
	dropped := after - before
	check := report.Check{What: "mounts that lost their connection", Want: "0", Got: strconv.FormatInt(dropped, 10), OK: dropped == 0}
	if how != "" {
		check.Want, check.OK = "some", dropped > 0
	}
	row.Checks = append(row.Checks, check)
	return nil
}

// fleetPart runs a process that is some of a fleet's hosts.
func (r *run) fleetPart(ctx context.Context, hosts int, lasts, how string) (done fleetReport, err error) {
	h := r.observer.host
	out, err := h.command(ctx, self, asFleet, strconv.Itoa(hosts), lasts, how, address(1, number(h.name), 1)).Output()
	if err != nil {
		return done, fmt.Errorf("the fleet: %w: %s", err, out)
	}
	if err := json.Unmarshal(out, &done); err != nil {
		return done, fmt.Errorf("the fleet said %q: %w", out, err)
	}
	return done, nil
}

// connects is how often the host's mounts have connected to their servers, in all.
func (h *host) connects() (sum int64, err error) {
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountstats", h.pid))
	if err != nil {
		return 0, err
	}
	all, err := mounts.ParseMountStats(content)
	for i := range all {
		sum += all[i].Transport.Connects
	}
	return sum, err
}

// peakConnections is how many clients were connected to the server's nfsd at a time, until
// it is stopped.
func peakConnections(stop <-chan struct{}) (most int) {
	for !isClosed(stop) {
		content, _ := os.ReadFile("/proc/net/tcp")
		now := 0
		for line := range strings.Lines(string(content)) {
			const established = "01"
			if f := strings.Fields(line); len(f) > 3 && f[3] == established && strings.HasSuffix(f[1], fmt.Sprintf(":%04X", nfsPort)) {
				now++
			}
		}
		most = max(most, now)
		time.Sleep(20 * time.Millisecond)
	}
	return most
}

// fleetReport is what came of a fleet's questions.
type fleetReport struct{ Asked, Answered int64 }

// beFleet simulates the hosts, and prints the report.
func beFleet(count, lasts, how, server string) error {
	hosts, err := strconv.Atoi(count)
	limit, err2 := time.ParseDuration(lasts)
	address, err3 := netip.ParseAddr(server)
	if err := errors.Join(err, err2, err3); err != nil {
		return err
	}
	question := sunrpc.Question{Network: "tcp", Address: netip.AddrPortFrom(address, nfsPort), Program: sunrpc.ProgramNFS}
	var asked, answered atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(limit)
	for i := range hosts {
		all.Go(func() {
			if how != "" {
				breathe(question, end, &asked, &answered)
				return
			}
			// They were started one after another.
			time.Sleep(limit / 2 * time.Duration(i) / time.Duration(hosts))
			attend(question, end, &asked, &answered)
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(fleetReport{asked.Load(), answered.Load()})
}

// attend is a host with vfsprobe whose mounts are well.
func attend(server sunrpc.Question, end time.Time, asked, answered *atomic.Int64) {
	pool, last, wanted := sunrpc.NewPool(), time.Time{}, fleetWanted()
	for round := uint64(1); time.Now().Before(end); round++ {
		pool.Ask(round, server, wanted, func(sunrpc.Answer) {})
		if a := pool.Last(server); a.At.After(last) {
			last = a.At
			asked.Add(1)
			if a.Answered() {
				answered.Add(1)
			}
		}
		time.Sleep(time.Until(nextGather()))
	}
}

// breathe is a host that asks at each gather, as all others do.
func breathe(server sunrpc.Question, end time.Time, asked, answered *atomic.Int64) {
	for wanted := fleetWanted(); time.Now().Before(end); {
		time.Sleep(time.Until(nextGather()))
		done := make(chan sunrpc.Answer, 1)
		wanted.Evidence = true
		sunrpc.NewPool().Ask(1, server, wanted, func(a sunrpc.Answer) { done <- a })
		asked.Add(1)
		if a := <-done; a.Answered() {
			answered.Add(1)
		}
	}
}

func fleetWanted() sunrpc.Wanted {
	return sunrpc.Wanted{Versions: []uint32{4}, Timeout: 5 * time.Second}
}

// nextGather is when Telegraf's round_interval has all hosts gather.
func nextGather() time.Time { return time.Now().Truncate(fleetInterval).Add(fleetInterval) }
