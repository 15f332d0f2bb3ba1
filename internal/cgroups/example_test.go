package cgroups_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/cgroups"
)

func ExampleIdentityOf() {
	const id = "3f5f9d5a3c1f4b0e8c7d6a5b4c3d2e1f0a9b8c7d6e5f4a3b2c1d0e9f8a7b6c5d"
	for _, path := range []string{
		"/system.slice/nfs-mountd.service",
		"/system.slice/docker-" + id + ".scope",
		"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1a2b3c4d_0000_1111_2222_333344445555.slice/cri-containerd-" + id + ".scope",
	} {
		identity := cgroups.IdentityOf(path)
		fmt.Printf("%q %d %q\n", identity.Name, len(identity.IDs), identity.PodUID)
	}
	// Output:
	// "nfs-mountd" 0 ""
	// "3f5f9d5a3c1f" 1 ""
	// "3f5f9d5a3c1f" 1 "1a2b3c4d-0000-1111-2222-333344445555"
}
