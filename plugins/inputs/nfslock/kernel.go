package nfslock

import (
	"errors"
	"os"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

// kernel counts the kernel's messages about NFS and its locks, since boot or as
// far back as its log goes.
type kernel struct {
	log    *kmsg.Log
	denied bool // the log can't be opened
	total  map[kmsg.Kind]int64
	by     map[string]map[kmsg.Kind]int64 // by the server's name in the message
}

// read takes what is new in the log.
func (k *kernel) read(n *Nfslock) {
	if k.denied || n.KernelLog == "" {
		return
	}
	if k.log == nil {
		log, err := kmsg.Open(n.KernelLog)
		if err != nil {
			k.denied = true
			why := ""
			if errors.Is(err, os.ErrPermission) {
				why = "; it takes CAP_SYSLOG"
			}
			n.Log.Infof("the kernel's messages about locks are not counted: %v%s", err, why)
			return
		}
		k.log, k.total, k.by = log, make(map[kmsg.Kind]int64), make(map[string]map[kmsg.Kind]int64)
		for _, kind := range kmsg.Kinds() {
			k.total[kind] = 0
		}
	}
	n.said.Error("kernel log", k.log.Read(k.take))
}

func (k *kernel) take(r kmsg.Record) {
	if r.Facility != 0 {
		return // a program wrote it
	}
	message, found := kmsg.Parse(r.Text)
	if !found {
		return
	}
	count := int64(1)
	if message.Kind == kmsg.LostLocks {
		count = message.Number
	}
	k.total[message.Kind] += count
	if message.Server == "" || message.Program == "statd" {
		return
	}
	if k.by[message.Server] == nil {
		const most = 1000
		if len(k.by) == most {
			return
		}
		k.by[message.Server] = make(map[kmsg.Kind]int64)
	}
	k.by[message.Server][message.Kind] += count
}

// fields adds the host's counts.
func (k *kernel) fields(fields map[string]any) {
	if k.log == nil {
		return
	}
	for kind, count := range k.total {
		fields[kernelField(kind)] = count
	}
	fields["kernel_log_lost"] = int64(k.log.Lost())
}

// serverFields adds the counts of a server, by any of its names.
func (k *kernel) serverFields(s *lockServer, fields map[string]any) {
	if k.log == nil {
		return
	}
	for _, kind := range kmsg.Kinds() {
		var count int64
		for name := range s.names {
			count += k.by[name][kind]
		}
		fields[kernelField(kind)] = count
	}
}
