package prober

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestWaitOf(t *testing.T) {
	for _, test := range []struct {
		state    byte
		function string
		plan     Plan
		want     Wait
	}{
		{'S', "request_wait_answer", Plan{}, Asleep},
		{'S', "fuse_simple_request", Plan{}, Asleep}, // the compiler's choice
		{'S', "__fuse_simple_request", Plan{}, Asleep},
		{'S', "request_wait_answer", Plan{Killable: true}, Asleep}, // on the way to an NFS mount
		{'S', "", Plan{}, Asleep},                                  // another user's
		{'S', "", Plan{Killable: true}, Killable},
		{'S', "do_wait", Plan{OutlivesServer: true}, Asleep}, // User Mode Linux does not know better
		{'D', "request_wait_answer", Plan{OutlivesServer: true}, Unkillable},
		{'D', "", Plan{}, Unkillable},
		{'D', "rpc_wait_bit_killable", Plan{}, Killable},
		{'D', "wait_for_response", Plan{}, Killable},
		{'S', "cifs_wait_for_server_reconnect", Plan{}, Killable},
		{'D', "smb2_reconnect", Plan{}, Unkillable}, // its mutex
		{'D', "p9_client_rpc", Plan{}, Unkillable},
		{'D', "ceph_mdsc_wait_request", Plan{}, Killable},
		{'S', "wait_generic_request", Plan{}, Killable},
		{'S', "nlm_wait_on_grace", Plan{}, Killable},
		{'D', "folio_wait_bit_common", Plan{}, Unkillable},
		{'D', "percpu_rwsem_wait", Plan{}, Unkillable},
		{'R', "", Plan{}, Killable},
		{'S', "pipe_read", Plan{}, Killable},
	} {
		assert.Equal(t, test.want, waitOf(&test.plan, test.state, test.function), "%c %s", test.state, test.function)
	}
}
