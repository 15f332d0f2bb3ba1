package nfslock

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// Stacks in the form of /proc/PID/stack, made up from the calls in the kernel's
// source.
func TestWhoWaitsForALock(t *testing.T) {
	const rpc = "[<0>] rpc_wait_bit_killable+0x11/0x60\n[<0>] __rpc_execute+0x120/0x330\n[<0>] rpc_run_task+0x149/0x1d0\n[<0>] rpc_call_sync+0x59/0xb0\n"
	for stack, want := range map[string]bool{
		rpc + "[<0>] nsm_mon_unmon+0xf2/0x150\n[<0>] nsm_monitor+0x4c/0x90\n[<0>] nlmclnt_lock+0x3f/0x3a0\n":      true,
		rpc + "[<0>] nlmclnt_call+0x9f/0x240\n[<0>] nlmclnt_test+0x27/0xd0\n[<0>] nlmclnt_proc+0x1d8/0x2c0\n":     true,
		rpc + "[<0>] _nfs4_do_setlk+0x1f9/0x430\n[<0>] nfs4_proc_lock+0x4d8/0x8a0\n[<0>] do_setlk+0x61/0xe0\n":    true,
		rpc + "[<0>] nfs3_rpc_wrapper+0x3d/0x80\n[<0>] nfs3_proc_fsstat+0x92/0xe0\n[<0>] nfs_statfs+0x65/0x150\n": false,
		"": false,
	} {
		assert.Equal(t, want, waitsForLock(stack), stack)
		if stack != "" {
			assert.Equal(t, "rpc_wait_bit_killable", firstFunction(stack))
		}
	}
	assert.Equal(t, "nlmclnt_block", firstFunction("nlmclnt_block"))
	assert.Equal(t, "rpc_wait_bit_killable", firstFunction("[<0>] __switch_to+0x1/0x2\n[<0>] rpc_wait_bit_killable+0x11/0x60\n"))
	assert.Empty(t, firstFunction("0"))
	assert.Empty(t, firstFunction(""))
}
