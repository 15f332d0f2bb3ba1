package result_test

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

// The values are in users' databases: none of these may ever change.
func TestCause_Values(t *testing.T) {
	for input, want := range map[string]string{
		"mountstat": "server_unreachable server_rpc_dead server_service_dead export_hangs stale_export login_refused share_gone mount_needs_remount automounter_stopped ceph_monitors_dead ceph_mds_dead ceph_osds_dead client_evicted lease_refused client_id_in_use source_deleted" +
			" fuse_daemon_silent fuse_daemon_dead fuse_server_unreachable fuse_server_silent frozen fanotify_silent device_hangs device_errors device_gone fs_shutdown" +
			" no_space read_only permission io_error not_mounted unknown",
		"nfslock": "ok statd_down statd_dead_registered statd_hung statd_down_latent statd_missing statd_masked lease_refused lease_expired client_id_in_use" +
			" client_name_shared delegation_recall state_manager_stuck lock_limit server_rpcbind_unreachable nlm_unregistered nlm_unreachable" +
			" nsm_unreachable server_unreachable grace_period held_elsewhere stale_export denied local_only no_canary unknown",
		"dentrycache": "",
	} {
		var got []string
		for _, c := range result.Causes(input) {
			got = append(got, string(c))
		}
		assert.ElementsMatch(t, strings.Fields(want), got, input)
	}
}

// all are the causes of all inputs.
func all() map[result.Cause]bool {
	found := make(map[result.Cause]bool)
	for _, input := range []string{"mountstat", "nfslock"} {
		for _, c := range result.Causes(input) {
			found[c] = true
		}
	}
	return found
}

func TestCause_TextsAreComplete(t *testing.T) {
	for c := range all() {
		assert.Regexp(t, `^[a-z].*[^.]$`, c.Meaning(), "%s: a clause, which logs continue", c)
		for _, text := range []string{c.Evidence(), c.Proof(nil), c.Cure(nil)} {
			assert.Regexp(t, `(?s)^.+[.]$`, text, "%s: sentences", c)
			assert.Zero(t, strings.Count(text, "`")%2, "%s: %s", c, text)
		}
		none := c == result.Healthy || c == result.LocalOnly || c == result.NoCanary
		assert.Equal(t, !none, c.Fault(), c)
	}
	source, err := os.ReadFile("cause.go")
	require.NoError(t, err)
	constants := make(map[result.Cause]bool)
	for _, m := range regexp.MustCompile(`Cause = "(\w+)"`).FindAllStringSubmatch(string(source), -1) {
		constants[result.Cause(m[1])] = true
	}
	assert.Equal(t, constants, all(), "constants and table")
	assert.Empty(t, result.Cause("").Meaning())
	assert.Empty(t, result.Cause("other").Cure(nil))
}

// commands are what a person would copy into a shell.
func commands(c result.Cause, v result.Values) []string {
	var found []string
	for _, m := range regexp.MustCompile("`([^`]*)`").FindAllStringSubmatch(c.Proof(v)+c.Cure(v), -1) {
		found = append(found, m[1])
	}
	return found
}

// Whatever a mount point is called, what is copied runs the command that is
// written there, with that name as one word.
func TestCause_CommandsAreQuoted(t *testing.T) {
	evil := "/mnt/it's; touch /tmp/x $(id) \"a\""
	v := make(result.Values)
	for _, name := range []result.Placeholder{result.Mount, result.Server, result.Device, result.Connection, result.Daemon, result.Canary, result.PID} {
		v[name] = evil
		used := 0
		for c := range all() {
			used += strings.Count(c.Proof(nil)+c.Cure(nil), string(name))
			for _, command := range commands(c, nil) {
				assert.NotRegexp(t, `['"][^'"]*`+string(name)+`[^'"]*['"]`, command, "%s: a value is quoted by itself", c)
			}
		}
		assert.Positive(t, used, "%s is in no text", name)
	}
	for c := range all() {
		for i, command := range commands(c, nil) {
			filled := commands(c, v)[i]
			out, err := exec.Command("bash", "-n", "-c", filled).CombinedOutput()
			require.NoError(t, err, "%s: %s: %s", c, filled, out)
			words := regexp.MustCompile(`MOUNT|SERVER|DEVICE|CONNECTION|DAEMON|CANARY|PID`)
			if words.MatchString(command) && !strings.ContainsAny(command, "&|;>$") {
				out, err := exec.Command("bash", "-c", `printf '%s\n' `+filled).Output()
				require.NoError(t, err, filled)
				want := words.ReplaceAllLiteralString(strings.ReplaceAll(command, " ", "\n"), evil)
				assert.Equal(t, want+"\n", string(out), c)
			}
		}
	}
}

func TestValues_WhatCannotBeShownStaysAPlaceholder(t *testing.T) {
	for _, value := range []string{"", "-rf", "/mnt/a\nb", `/mnt/a\012b`, "/mnt/\xff", "/mnt/\u202ex"} {
		assert.Equal(t, "`ls -ld MOUNT`.", result.Permission.Proof(result.Values{result.Mount: value}), "%q", value)
	}
	assert.Equal(t, "`ls -ld /srv/SERVER/ä`.", strings.ReplaceAll(result.Permission.Proof(result.Values{result.Mount: "/srv/SERVER/ä", result.Server: "x"}), "'", ""))
}

func TestTable(t *testing.T) {
	table := result.Table("cause", []result.Cause{result.IOError})
	assert.Equal(t, "| cause | meaning | evidence | by hand | what to do |\n|---|---|---|---|---|\n"+
		"| io_error | the file system gives errors; the field errno names them | Any other errno. `reason` quotes the error of the file system that the kernel has logged, if it has. | `dmesg -T \\| tail`. | Mend what the kernel's log names. |\n", table)
}

func ExampleCause_Cure() {
	v := result.Values{result.Mount: "/srv/my media", result.Connection: "57", result.Restart: "systemctl restart rclone@media.service"}
	fmt.Println(result.FUSEDaemonSilent.Meaning())
	fmt.Println(result.FUSEDaemonSilent.Cure(v))
	fmt.Println(result.NotMounted.Cure(nil))
	// Output:
	// the FUSE daemon does not answer: it hangs itself, is stopped, or waits for something that could not be seen
	// If it is stopped: `kill -CONT DAEMON`. If it waits for its server, its disk or another mount, mend that. Restart the daemon only if it hangs itself: `systemctl restart rclone@media.service`, with its unit or container. To free those who wait: `echo 1 >/sys/fs/fuse/connections/57/abort`. This loses what was not written, and all calls fail until it is mounted anew: `umount -l '/srv/my media' && mount '/srv/my media'`.
	// `mount MOUNT`, or remove it from fstab, disable its unit, or take it out of the configuration.
}
