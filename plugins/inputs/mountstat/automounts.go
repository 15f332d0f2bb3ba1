package mountstat

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/mounts"
	"github.com/vfsprobe/vfsprobe/internal/procfs"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// maxAutomounts is how many mounts of autofs are looked at; a direct map has one for each entry.
const maxAutomounts = 1024

// automounts are the mounts of autofs, where something is mounted on demand.
type automounts struct {
	*kit
	*inventory
	servers *servers

	there     bool                  // some are
	unmet     map[string]*shortfall // where nothing can be mounted, by mount point
	demands   map[string]*demand    // by mount point
	searching int                   // for servers of demands, that go on
	lookedFor bool                  // connections of automounters are
	looks     budget                // of CPU time
}

// judge finds the mounts of autofs whose automounter is stopped or has ended. Whoever
// opens what such an automounter has not mounted waits, or finds nothing. Of the others it
// reports only what they can't mount because its server is dead.
func (a *automounts) judge(expected *expectations) {
	whys := make(map[string]string) // by process group
	now, looked := make(map[string]*shortfall), 0
	a.there = false
	for i := range a.table.Mounts {
		mount := &a.table.Mounts[i]
		if mount.FSType != "autofs" || mount.Hidden || !a.selection.Fits(mount) || strings.HasPrefix(mount.Mountpoint, "/proc/") {
			continue // or it is binfmt_misc, which each host has
		}
		a.there = true
		if expected.wants(mount.Mountpoint) {
			continue
		}
		if looked++; looked > maxAutomounts {
			break
		}
		group, _ := mount.Option("pgrp")
		why, known := whys[group]
		if !known {
			why = a.automounterFails(group)
			whys[group] = why
		}
		if why != "" {
			now[mount.Mountpoint] = &shortfall{expectation: expectation{path: mount.Mountpoint, source: mount.Source, fstype: mount.FSType},
				cause: result.AutomounterStopped, why: why}
		}
	}
	a.judgeDemands(now)
	a.unmet = follow(a.unmet, now, a.sayUnmet, a.sayMet)
}

// automounterFails is why a process group can mount nothing, as the process that leads it tells
// (pgrp=, autofs_show_options, fs/autofs/inode.c). It is empty if the group can, or if that can't
// be seen.
func (a *automounts) automounterFails(group string) string {
	pid, err := strconv.Atoi(group)
	if err != nil || pid <= 1 { // 0: it is of another PID namespace
		return ""
	}
	stat, err := procfs.ReadText(filepath.Join(a.host.Proc, group, "stat"))
	if errors.Is(err, fs.ErrNotExist) && a.seesProcesses() {
		return fmt.Sprintf("its automounter, process %d, has ended", pid)
	}
	comm, state := processState(stat)
	if state != 'T' && state != 't' {
		return ""
	}
	return fmt.Sprintf("its automounter %s (process %d) is stopped: kill -CONT %d", mounts.Printable(comm), pid, pid)
}

// seesProcesses reports whether processes of other users can be seen: hidepid= can hide them,
// proc(5).
func (a *automounts) seesProcesses() bool {
	_, err := procfs.ReadText(filepath.Join(a.host.Proc, "1/stat"))
	return err == nil
}

// processState is the name and the state in /proc/PID/stat; a state of 0 means that there is none.
func processState(stat string) (comm string, state byte) {
	begin, end := strings.IndexByte(stat, '('), strings.LastIndex(stat, ") ")
	if begin < 0 || end < begin || end+2 >= len(stat) {
		return "", 0
	}
	return stat[begin+1 : end], stat[end+2]
}

// emit reports the automounts where nothing can be mounted.
func (a *automounts) emit(acc telegraf.Accumulator, counts *counts) {
	for _, s := range a.unmet {
		counts[result.Error]++
		fields := map[string]any{
			"result":        result.Error.String(),
			"result_code":   int64(result.Error),
			"cause":         string(s.cause),
			"reason":        s.why,
			"hung_seconds":  0.0,
			"fault_seconds": time.Since(s.since).Seconds(),
		}
		s.answer.AddTo(fields, "server_rpc")
		tags := map[string]string{"path": mounts.Printable(s.path), "device": mounts.SourceTag(s.source), "fstype": mounts.Printable(s.fstype)}
		if s.server != "" {
			tags["server"] = s.server
		}
		acc.AddGauge("mountstat", fields, tags)
	}
}
