package nfslock

import "github.com/vfsprobe/vfsprobe/internal/kmsg"

// kernel counts the kernel's messages about NFS and its locks, since boot or as
// far back as its log goes.
type kernel struct {
	readable bool
	lost     uint64 // records
	total    map[kmsg.Kind]int64
	by       map[string]map[kmsg.Kind]int64 // by the server's name in the message
}

// read takes what is new in the log.
func (k *kernel) read(n *Nfslock) {
	news, readable := n.host.KernelLog(n.KernelLog, n)
	if !readable {
		return
	}
	if !k.readable {
		k.readable, k.total, k.by = true, make(map[kmsg.Kind]int64), make(map[string]map[kmsg.Kind]int64)
		for _, kind := range kmsg.Kinds() {
			k.total[kind] = 0
		}
	}
	k.lost = news.Lost
	for _, r := range news.Records {
		k.take(r)
	}
}

func (k *kernel) take(r kmsg.Record) {
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
	if !k.readable {
		return
	}
	for kind, count := range k.total {
		fields[kernelField(kind)] = count
	}
	fields["kernel_log_lost"] = int64(k.lost)
}

// serverFields adds the counts of a server, by any of its names.
func (k *kernel) serverFields(s *lockServer, fields map[string]any) {
	if !k.readable {
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
