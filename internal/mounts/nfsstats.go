package mounts

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// NFSStats is what the kernel counted for one NFS mount since it was mounted.
// Mounts of one export share their superblock, and then their counters. See
// nfs_show_stats, fs/nfs/super.c.
type NFSStats struct {
	Device     string // as in the mount table, escapes decoded
	Mountpoint string
	FSType     string // nfs or nfs4
	Version    string // of the format, statvers: "1.1" for all kernels of today
	Age        int64  // seconds since the mount
	Bytes      NFSBytes
	Transport  NFSTransport
	Operations NFSOperations
	State      NFS4State
}

// NFS4State is what the counters tell about an NFSv4 client's lease. Since Linux 5.0 the
// operations are those of all mounts of the client together; before there were none.
type NFS4State struct {
	HasLease     bool  // Linux 5.10 and later show it
	LeaseTime    int64 // seconds that the server gives it without a renewal
	LeaseExpired int64 // seconds since it has expired without one; 0: it has not
	Renewals     int64 // RENEW and SEQUENCE, of which each call of version 4.1 has one
	// Identities is how often the client made itself known: EXCHANGE_ID and SETCLIENTID. It
	// does so when it mounts, and after it has lost its state.
	Identities int64
}

// NFSBytes says how much was read and written (linux/nfs_iostat.h).
type NFSBytes struct {
	NormalRead, NormalWritten int64 // by read(2) and write(2), and the like
	DirectRead, DirectWritten int64 // of files opened with O_DIRECT
	ServerRead, ServerWritten int64 // from and to the server; caches make it differ
}

// NFSTransport is the sum over the mount's connections; there are
// several with nconnect. See xs_tcp_print_stats, net/sunrpc/xprtsock.c, and
// xprt_rdma_print_stats.
type NFSTransport struct {
	Protocol    string // tcp, udp, rdma or local; of the last connection
	Connections int64
	Connects    int64 // how often one was made; 0 for udp
	Idle        int64 // seconds since the last use of any; 0 for udp, and while one is not connected
	Sends       int64 // calls sent, again or for the first time
	Receives    int64 // answers
	BadXIDs     int64 // answers which no call waited for
	// Backlog and Pending are no lengths: at every call the kernel adds the
	// length that the queue then has. Their growth divided by that of Sends is
	// the mean length of a queue: of calls that wait for a slot, and of calls that were sent
	// and are not answered. Pending is 0 for rdma, which has no such count.
	Backlog int64
	Pending int64
}

// NFSOperations is the sum over all kinds of operations. See
// rpc_clnt_show_stats, net/sunrpc/stats.c. An operation counts when it ends:
// those that hang are in none of these.
type NFSOperations struct {
	Count         int64
	Transmissions int64
	MajorTimeouts int64 // times that a call was given up or begun anew; see retrans in nfs(5)
	BytesSent     int64
	BytesReceived int64
	Queue         int64 // milliseconds before they were sent
	RoundTrip     int64 // milliseconds from the last sending to the answer
	Execute       int64 // milliseconds in all, with queueing and retransmissions
	Errors        int64 // ended with an error
	HasErrors     bool  // kernels before 5.3 don't count errors
}

// Retransmissions is how often a call was sent again.
func (o *NFSOperations) Retransmissions() int64 { return max(0, o.Transmissions-o.Count) }

// ParseMountStats reads the content of /proc/self/mountstats, proc_pid_mountstats(5):
//
//	device nas:/home mounted on /home with fstype nfs4 statvers=1.1
//		age:	3542
//		bytes:	1 2 3 4 5 6 7 8
//		RPC iostats version: 1.1  p/v: 100003/4 (nfs)
//		xprt:	tcp 909 0 1 0 2 294 294 0 294 0 2 0 0
//		per-op statistics
//		        READ: 1 1 0 176 4216 0 1 1 0
//
// Unknown lines and columns are skipped. An NFS mount with a line that makes no
// sense is left out, and the line is named in the error.
func ParseMountStats(content []byte) ([]NFSStats, error) {
	var all []NFSStats
	var problems []error
	for len(content) > 0 {
		var line []byte
		line, content = cutLine(content)
		if !bytes.Contains(line, []byte(" with fstype nfs")) {
			continue
		}
		stats, ok := deviceLine(line)
		if !ok {
			continue
		}
		var problem error
		// What belongs to the mount is indented; an empty line ends it.
		for operations := false; len(content) > 0 && content[0] == '\t'; {
			line, content = cutLine(content)
			key, values, found := bytes.Cut(bytes.TrimSpace(line), []byte(":"))
			switch {
			case string(key) == "impl_id":
				content = skipName(line, content)
			case problem != nil:
			case !found:
				operations = operations || string(key) == "per-op statistics"
			default:
				if err := stats.add(operations, string(key), values); err != nil {
					problem = fmt.Errorf("counters of the mount %q: %w: %q", stats.Mountpoint, err, line)
				}
			}
		}
		if problem != nil {
			problems = append(problems, problem)
		} else {
			all = append(all, stats)
		}
	}
	return all, errors.Join(problems...)
}

// skipName skips the rest of the server's name after its first line. Names of FreeBSD servers
// have more lines: name='…',domain='…',date='…' (show_implementation_id, fs/nfs/super.c).
func skipName(line, content []byte) []byte {
	for !bytes.Contains(line, []byte(",date='")) && len(content) > 0 && !bytes.HasPrefix(content, []byte("device ")) {
		line, content = cutLine(content)
	}
	return content
}

func cutLine(content []byte) (line, rest []byte) {
	line, rest, _ = bytes.Cut(content, []byte("\n"))
	return line, rest
}

// deviceLine reads the line that begins a mount (show_vfsstat,
// fs/proc_namespace.c), if the mount has counters.
func deviceLine(line []byte) (NFSStats, bool) {
	f := strings.Fields(string(line))
	if len(f) < 9 || f[0] != "device" || f[2] != "mounted" || f[7] != "nfs" && f[7] != "nfs4" {
		return NFSStats{}, false
	}
	version, found := strings.CutPrefix(f[8], "statvers=")
	return NFSStats{Device: UnescapeOctal(f[1]), Mountpoint: UnescapeOctal(f[4]), FSType: f[7], Version: version}, found
}

// add counts one line, which is that of an operation or of the mount.
func (s *NFSStats) add(operation bool, key string, values []byte) error {
	var n [12]int64
	switch {
	case operation:
		count, err := columns(values, n[:], 8)
		if err != nil {
			return err
		}
		s.State.count(key, n[0])
		o := &s.Operations
		for i, sum := range []*int64{&o.Count, &o.Transmissions, &o.MajorTimeouts, &o.BytesSent, &o.BytesReceived,
			&o.Queue, &o.RoundTrip, &o.Execute, &o.Errors} {
			*sum += n[i]
		}
		o.HasErrors = o.HasErrors || count > 8
	case key == "age":
		_, err := columns(values, n[:], 1)
		s.Age = n[0]
		return err
	case key == "bytes":
		_, err := columns(values, n[:], 6)
		s.Bytes = NFSBytes{n[0], n[1], n[2], n[3], n[4], n[5]}
		return err
	case key == "xprt":
		return s.Transport.add(values)
	case key == "nfsv4":
		s.State.lease(string(values))
	}
	return nil
}

func (s *NFS4State) count(operation string, n int64) {
	switch operation {
	case "RENEW", "SEQUENCE":
		s.Renewals += n
	case "EXCHANGE_ID", "SETCLIENTID":
		s.Identities += n
	}
}

// lease reads what show_lease, fs/nfs/super.c, adds to the line of capabilities.
func (s *NFS4State) lease(values string) {
	for field := range strings.SplitSeq(strings.TrimSpace(values), ",") {
		key, value, _ := strings.Cut(field, "=")
		number, err := strconv.ParseInt(value, 10, 64)
		switch {
		case err != nil:
		case key == "lease_time":
			s.HasLease, s.LeaseTime = true, max(0, number)
		case key == "lease_expired":
			s.LeaseExpired = max(0, number)
		}
	}
}

// add counts one connection. The kinds differ in what comes before the sends.
func (t *NFSTransport) add(values []byte) error {
	values = bytes.TrimSpace(values)
	protocol, values, _ := bytes.Cut(values, []byte(" "))
	var n [13]int64
	var common []int64 // sends, recvs, bad_xids, req_u, bklog_u, max_slots, sending_u, pending_u
	var connects, idle int64
	switch string(protocol) {
	case "tcp", "rdma": // srcport, bind_count, connect_count, connect_time, idle_time
		if _, err := columns(values, n[:], 10); err != nil {
			return err
		}
		connects, idle, common = n[2], n[4], n[5:]
	case "local": // bind_count, connect_count, connect_time, idle_time
		if _, err := columns(values, n[:], 9); err != nil {
			return err
		}
		connects, idle, common = n[1], n[3], n[4:]
	case "udp": // srcport, bind_count
		if _, err := columns(values, n[:], 7); err != nil {
			return err
		}
		common = n[2:]
	default:
		return nil
	}
	if t.Connections == 0 || idle < t.Idle {
		t.Idle = idle
	}
	t.Protocol = string(protocol)
	t.Connections++
	t.Connects += connects
	t.Sends += common[0]
	t.Receives += common[1]
	t.BadXIDs += common[2]
	t.Backlog += common[4]
	if t.Protocol != "rdma" { // which has other counts there
		t.Pending += common[7]
	}
	return nil
}

// columns reads numbers. There must be at least atLeast of them. Numbers beyond the array are
// skipped, missing ones stay zero. A time below zero, which the kernel prints as if it had no sign
// (rpc_clnt_show_stats, net/sunrpc/stats.c), becomes zero.
func columns(text []byte, numbers []int64, atLeast int) (count int, err error) {
	for field := range bytes.FieldsSeq(text) {
		if count == len(numbers) {
			break
		}
		number, err := strconv.ParseInt(string(field), 10, 64)
		if errors.Is(err, strconv.ErrRange) {
			_, err = strconv.ParseUint(string(field), 10, 64)
			number = 0
		}
		if err != nil {
			return count, err
		}
		numbers[count] = max(0, number)
		count++
	}
	if count < atLeast {
		return count, fmt.Errorf("%d numbers, expected %d", count, atLeast)
	}
	return count, nil
}
