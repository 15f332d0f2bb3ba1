package scenario

import "slices"

// A Verb is a word a line can begin with.
type Verb struct {
	Name, Usage string
	Min, Max    int      // arguments
	First       []string // what the first argument can be; empty: anything
	Statement   bool
	Does        string
}

// Verbs is the vocabulary. The guest knows how to do what is not a statement.
func Verbs() []Verb {
	hosts := []string{"client", "client2", "server"}
	return []Verb{
		{Name: "mount", Usage: "NAME [SERVER:PATH OPTIONS] | all", Min: 1, Max: 3, Does: "mounts on the client, at /mnt/NAME; `all`: v3, v3-soft, v3-nolock, v4 and v4-soft"},
		{Name: "umount", Usage: "NAME", Min: 1, Max: 1, Does: "unmounts it"},
		{Name: "walk", Usage: "NAME/PATH", Min: 1, Max: 1, Does: "lists a directory below a mount, where the kernel mounts what `nest` or `refer` has made; that is a mount of this name then"},
		{Name: "expire", Usage: "NAME/PATH", Min: 1, Max: 1, Does: "waits until the kernel has unmounted it, since nobody used it"},
		{Name: "many", Usage: "COUNT NAME SERVER:PATH OPTIONS", Min: 4, Max: 4, Does: "mounts NAME-1 to NAME-COUNT, each with a superblock of its own"},
		{Name: "crowd", Usage: "COUNT NAME SERVER:PATH OPTIONS", Min: 4, Max: 4, Does: "makes more clients, with three mounts NAME-N and a vfsprobe each, which all lock one canary"},
		{Name: "option", Usage: "INPUT KEY = VALUE", Min: 4, Max: 16, Does: "adds a line to an input's table of vfsprobe's configuration"},
		{Name: "observe", Usage: "[telegraf|prometheus|at-once]", Max: 1, First: nil, Does: "starts vfsprobe on the client, by itself or under Telegraf, and waits until all mounts are ok; prometheus: under a Telegraf that a Prometheus outside scrapes; at-once: in the server's grace period, too"},
		{Name: "restart", Usage: "plugin|telegraf", Min: 1, Max: 1, First: []string{"plugin", "telegraf"}, Does: "stops it as Telegraf or systemd does, which must take less than 10 s, and starts it again"},

		{Name: "cut", Usage: "HOST", Min: 1, Max: 1, First: hosts[:2], Does: "drops all packets between the host and the server"},
		{Name: "reject", Usage: "HOST [SERVICE]", Min: 1, Max: 2, First: hosts[:2], Does: "answers the host's packets to the server (or one service of it: nfs, nlm, rpcbind, mountd, statd) with ICMP prohibited"},
		{Name: "drop", Usage: "HOST SERVICE", Min: 2, Max: 2, First: hosts[:2], Does: "drops the host's packets to a service of the server"},
		{Name: "vanish", Usage: "server", Min: 1, Max: 1, First: hosts[2:], Does: "takes the server's address away: nothing answers ARP"},
		{Name: "heal", Does: "undoes cut, reject, drop and vanish"},

		{Name: "statd", Usage: "HOST stop|kill|freeze|thaw|start", Min: 2, Max: 2, First: hosts, Does: "does that to rpc.statd; a stopped one unregisters, a killed one does not"},
		{Name: "rpcbind", Usage: "HOST stop|start|forget|remember", Min: 2, Max: 2, First: hosts, Does: "does that to rpcbind; with forget it is restarted, and knows nothing of what was registered until it is to remember"},
		{Name: "nfsd", Usage: "stop|start [grace]", Min: 1, Max: 2, First: []string{"stop", "start"}, Does: "does that on the server; the grace period is short, and ended at once for v4, unless asked for"},
		{Name: "ganesha", Usage: "start", Min: 1, Max: 1, First: []string{"start"}, Does: "starts a server of that kind, NFS-Ganesha, which exports ganesha:/srv/ganesha until the scenario ends"},
		{Name: "mountd", Usage: "freeze|thaw", Min: 1, Max: 1, First: []string{"freeze", "thaw"}, Does: "does that to the server's rpc.mountd, and has nfsd forget what it said: requests wait for it"},
		{Name: "unexport", Usage: "PATH", Min: 1, Max: 1, Does: "takes an export away"},
		{Name: "export", Usage: "PATH", Min: 1, Max: 1, Does: "exports it again, as it was at first"},
		{Name: "fsid", Usage: "PATH NUMBER", Min: 2, Max: 2, Does: "exports it under another fsid"},
		{Name: "mkdir", Usage: "PATH", Min: 1, Max: 1, Does: "makes a directory on the server"},
		{Name: "rmdir", Usage: "PATH", Min: 1, Max: 1, Does: "removes a directory on the server"},
		{Name: "nest", Usage: "PATH", Min: 1, Max: 1, Does: "mounts another file system on a directory in an export, and exports it with that: clients see it there"},
		{Name: "refer", Usage: "PATH", Min: 1, Max: 1, Does: "exports a directory in an export as a referral of NFSv4 to the second server"},
		{Name: "freeze", Usage: "PATH", Min: 1, Max: 1, Does: "freezes an exported file system"},
		{Name: "thaw", Usage: "PATH", Min: 1, Max: 1, Does: "thaws it"},
		{Name: "fill", Usage: "PATH", Min: 1, Max: 1, Does: "fills an exported file system"},
		{Name: "drain", Usage: "PATH", Min: 1, Max: 1, Does: "removes what fill wrote"},

		{Name: "lock", Usage: "HOST NAME shared|exclusive|wanted|delegated", Min: 3, Max: 3, First: hosts[:2], Does: "locks the file `lock` of a mount and holds it, or with wanted waits for it, or with delegated opens it to read, for which the server must give a delegation; client2 mounts it for that as the client does"},
		{Name: "undelegated", Usage: "NAME", Min: 1, Max: 1, Does: "no client may have a delegation of the mount's lock file"},
		{Name: "twin", Usage: "client2 NAME", Min: 2, Max: 2, First: hosts[1:2], Does: "client2 takes the client's name, and mounts it as well"},
		{Name: "proxy", Usage: "client|client2 start|refuse|stall|stall-state|as-other-user|pass", Min: 2, Max: 2, First: hosts[:2], Does: "starts a proxy at its port 20049 that passes calls on to the server; or refuses each but NULL with an authentication error; or answers none; or none by which a client makes itself known; or has these come from another user; or passes all on again"},
		{Name: "forget", Usage: "client|client2", Min: 1, Max: 1, First: hosts[:2], Does: "the server drops all that it keeps of the client for NFSv4"},
		{Name: "clear", Usage: "PATH", Min: 1, Max: 1, Does: "drops all locks on an exported file system"},
		{Name: "unlock", Usage: "HOST", Min: 1, Max: 1, First: hosts[:2], Does: "ends the holders"},
		{Name: "crash", Usage: "client2", Min: 1, Max: 1, First: hosts[1:2], Does: "the host falls silent, and its lock holders are gone without an unlock"},
		{Name: "reboot", Usage: "client2", Min: 1, Max: 1, First: hosts[1:2], Does: "the crashed host comes back and tells the server so (sm-notify)"},
		{Name: "dirty", Usage: "NAME", Min: 1, Max: 1, Does: "leaves dirty pages of a file in the client's page cache"},
		{Name: "clock", Usage: "+DURATION|-DURATION", Min: 1, Max: 1, Does: "sets the machine's wall clock forwards or backwards by so much; the scenario's end sets it right"},
		{Name: "suspend", Usage: "DURATION", Min: 1, Max: 1, Does: "suspends the machine, and wakes it after that time"},
		{Name: "tests", Usage: "EXPRESSION", Min: 1, Max: 1, Does: "runs the end-to-end tests of these names in the machine, whose cgroups are of version 2"},
		{Name: "alert", Usage: "NAME", Min: 1, Max: 1, Does: "the alert must fire in the Prometheus outside; in stories only"},
		{Name: "wait", Usage: "DURATION", Min: 1, Max: 1, Does: "waits"},
		{Name: "recover", Usage: "", Does: "all mounts must become ok again, and no helper be left"},

		{Name: "expect", Usage: "MOUNTS INPUT FIELD VALUES", Min: 4, Max: 4, Statement: true, Does: "the field must take one of the values, and keep it; `ok` must hold all the time"},
		{Name: "never", Usage: "MOUNTS INPUT FIELD VALUES", Min: 4, Max: 4, Statement: true, Does: "the field must not have one of the values until the scenario's end"},
		{Name: "counts", Usage: "MOUNTS INPUT FIELD TOLERANCE", Min: 4, Max: 4, Statement: true, Does: "the field, in seconds, must go on from what it was before the last thing was done as the monotonic clock does, give or take so many seconds"},
		{Name: "witness", Usage: "MOUNTS CALLS OUTCOMES", Min: 3, Max: 3, Statement: true, Does: "system calls made beside vfsprobe end so: ok, an errno, `hangs` (and dies when killed) or `stuck` (does not)"},
	}
}

func lookup(name string) (Verb, bool) {
	verbs := Verbs()
	i := slices.IndexFunc(verbs, func(v Verb) bool { return v.Name == name })
	if i < 0 {
		return Verb{}, false
	}
	return verbs[i], true
}
