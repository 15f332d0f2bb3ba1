// Package containers runs the image under real container engines, as docs/CONTAINERS.md says:
// Podman, Docker and containerd, with crun, with Debian's runc and a newer one. Its tests have
// PID and mount namespaces of their own, whose process 1 stands for the host's; the engines
// keep their images and containers in memory there, and their daemons end with the tests. No
// registry is asked: Telegraf is built from its sources.
//
// One of each kind is tested. VFSPROBE_RUNTIMES=all has all of them, in both versions of
// cgroups, and VFSPROBE_CGROUPS=2 in version 2 alone.
package containers
