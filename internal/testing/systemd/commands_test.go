//go:build !race

package systemd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
	"github.com/vfsprobe/vfsprobe/internal/testing/vm"
)

// commandsSetup makes a unit of a user's manager, and a machine of systemd-nspawn whose files are
// those of the host's /usr, with a unit.
const commandsSetup = `set -e
useradd --uid 1000 --create-home --shell /bin/sh somebody
mkdir -p /etc/systemd/user
printf '[Service]\nExecStart=/usr/bin/sleep infinity\n' | tee /etc/systemd/user/sleeps.service >/etc/systemd/system/sleeps.service
systemctl start dbus systemd-logind
loginctl enable-linger somebody
until systemctl --user -M 1000@ start sleeps.service; do sleep 1; done

root=/var/lib/machines/web
mkdir -p $root/usr $root/etc/systemd/system/only.target.wants $root/var $root/run $root/tmp $root/proc $root/sys $root/dev $root/root
mount --bind /usr $root/usr
for name in bin sbin lib lib64; do [ -e /usr/$name ] && ln -s usr/$name $root/$name; done
for name in passwd group shadow nsswitch.conf dbus-1 pam.d os-release; do [ ! -e /etc/$name ] || cp -a /etc/$name $root/etc/; done
[ -e $root/etc/os-release ] || touch $root/etc/os-release
: >$root/etc/machine-id
printf '[Unit]\nAllowIsolate=yes\n' >$root/etc/systemd/system/only.target
ln -s only.target $root/etc/systemd/system/default.target
printf '[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/bin/sleep infinity\n' >$root/etc/systemd/system/sleeps.service
ln -s ../sleeps.service $root/etc/systemd/system/only.target.wants/sleeps.service
ln -s /usr/lib/systemd/system/dbus.service $root/etc/systemd/system/only.target.wants/dbus.service
mkdir -p /etc/systemd/nspawn
printf '[Exec]\nPrivateUsers=no\n[Network]\nVirtualEthernet=no\n' >/etc/systemd/nspawn/web.nspawn
systemctl start systemd-machined
machinectl start web
until systemctl -M web list-units >/dev/null 2>&1; do sleep 0.5; done
`

// The commands that check and the log give for processes of a user's manager and of machines do
// what they are to.
func TestSystemd_RestartCommands(t *testing.T) {
	if os.Getenv("VFSPROBE_HANG") == "" {
		t.Skip("it takes a minute: make test-long")
	}
	m := vm.Start(t, vm.Config{Emulator: vm.UML(), Base: vm.SystemdBase("passwd", "procps", "libpam-systemd", "dbus-user-session", "systemd-container"), Init: vm.Systemd()})
	sh := func(script string) string {
		t.Helper()
		return vm.Output(t, m.Shell, 5*time.Minute, script)
	}
	sh(commandsSetup)
	// await is the process that a command names, if it is not the one before.
	await := func(command, before string) string {
		t.Helper()
		return sh("for i in $(seq 100); do pid=$(" + command + "); case $pid in '' | 0 | " + before + ") sleep 0.2 ;; *) break ;; esac; done; echo $pid")
	}
	for _, c := range []struct{ pid, want string }{
		{"systemctl --user -M 1000@ show --property=MainPID --value sleeps.service", "systemctl --user -M 1000@ restart sleeps.service"},
		{"for p in $(pgrep -x sleep); do grep -q 'nspawn@web.*sleeps' /proc/$p/cgroup && echo $p; done", "systemctl -M web restart sleeps.service"},
		{"machinectl show --property=Leader --value web", "machinectl reboot web"},
	} {
		t.Run(c.want, func(t *testing.T) {
			pid := await(c.pid, "none")
			require.NotEmpty(t, pid)
			file := filepath.Join(t.TempDir(), "cgroup")
			require.NoError(t, os.WriteFile(file, []byte(sh("cat /proc/"+pid+"/cgroup")+"\n"), 0o600))
			command := cgroups.Restart(file)
			require.Equal(t, c.want, command)
			sh(command)
			after := await(c.pid, pid)
			assert.NotEqual(t, pid, after)
			assert.NotEmpty(t, after)
		})
	}
}
