// Package containers runs the image under a real container runtime: Podman, with crun and
// with runc, as docs/CONTAINERS.md says. Its tests have PID and mount namespaces of their own,
// whose process 1 stands for the host's; Podman keeps its images and containers in memory
// there. No registry is asked: Telegraf is built from its sources.
package containers
