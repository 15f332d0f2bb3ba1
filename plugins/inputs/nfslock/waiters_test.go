package nfslock

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Stacks in the form of /proc/PID/stack, made up from the calls in the kernel's
// source.
func TestWaiters_OfALock(t *testing.T) {
	const rpc = "[<0>] rpc_wait_bit_killable+0x11/0x60\n[<0>] __rpc_execute+0x120/0x330\n[<0>] rpc_run_task+0x149/0x1d0\n[<0>] rpc_call_sync+0x59/0xb0\n"
	for stack, want := range map[string]bool{
		rpc + "[<0>] nsm_mon_unmon+0xf2/0x150\n[<0>] nsm_monitor+0x4c/0x90\n[<0>] nlmclnt_lock+0x3f/0x3a0\n":      true,
		rpc + "[<0>] nlmclnt_call+0x9f/0x240\n[<0>] nlmclnt_test+0x27/0xd0\n[<0>] nlmclnt_proc+0x1d8/0x2c0\n":     true,
		rpc + "[<0>] _nfs4_do_setlk+0x1f9/0x430\n[<0>] nfs4_proc_lock+0x4d8/0x8a0\n[<0>] do_setlk+0x61/0xe0\n":    true,
		rpc + "[<0>] nfs3_rpc_wrapper+0x3d/0x80\n[<0>] nfs3_proc_fsstat+0x92/0xe0\n[<0>] nfs_statfs+0x65/0x150\n": false,
		"": false,
	} {
		assert.Equal(t, want, isLockCall(stack), stack)
		if stack != "" {
			assert.Equal(t, "rpc_wait_bit_killable", firstFunction(stack))
		}
	}
	assert.Equal(t, "nlmclnt_block", firstFunction("nlmclnt_block"))
	assert.Equal(t, "rpc_wait_bit_killable", firstFunction("[<0>] __switch_to+0x1/0x2\n[<0>] rpc_wait_bit_killable+0x11/0x60\n"))
	assert.Equal(t, "rpc_wait_bit_killable", firstFunction("[<ffffffffc04c5d04>] rpc_wait_bit_killable+0x24/0x40 [sunrpc]\n[<ffffffffffffffff>] 0xffffffffffffffff\n"))
	assert.Empty(t, firstFunction("[<ffffffffffffffff>] 0xffffffffffffffff\n"))
	assert.Empty(t, firstFunction("0"))
	assert.Empty(t, firstFunction(""))
}

func FuzzStack(f *testing.F) {
	f.Add("[<0>] __switch_to+0x1/0x2\n[<0>] nlm_wait_on_grace+0x11/0x60 [lockd]\n[<0>] nlmclnt_lock+0x3f/0x3a0\n")
	f.Add("[<ffffffffc04c5d04>] nfs4_delay+0x24/0x40 [nfsv4]\n[<ffffffffffffffff>] 0xffffffffffffffff\n")
	f.Add("rpc_wait_bit_killable")
	f.Add("0")
	f.Fuzz(func(t *testing.T, waits string) {
		name := firstFunction(waits)
		require.NotContains(t, name, "+")
		require.NotContains(t, name, "\n")
		require.NotContains(t, []string{"0", "__switch_to", "__schedule", "schedule"}, name)
		require.Contains(t, waits, name)
		if name == "" {
			name = "nlmclnt_lock"
		}
		require.Equal(t, name, firstFunction(waits+"\n[<0>] nlmclnt_lock+0x3f/0x3a0 [lockd]\n"), "what is on top counts")
		require.Equal(t, waitGrace, waitOf(waits+"\n[<0>] nlm_wait_on_grace+0x1/0x2 [lockd]\n"))
		require.True(t, isLockCall(waits+"\n[<0>] nlmclnt_lock+0x3f/0x3a0 [lockd]\n"))
		require.False(t, waitOf(firstFunction(waits)) != waitOther && waitOf(waits) == waitOther)
	})
}
