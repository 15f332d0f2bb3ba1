// Package kubernetes runs the Helm chart in a cluster of one node: etcd, Kubernetes' API
// server, controllers, scheduler and kubelet, containerd and runc, none of them imitated. Its
// tests have PID, mount and network namespaces of their own, which stand for the node: all of the
// cluster ends with them, and keeps its files in memory. Kubernetes is built from its sources
// by "make test-kubernetes", which takes minutes once; without that the tests are skipped.
package kubernetes
