package fileserver

import (
	"bytes"
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// The beginnings of what a monitor sends at once after it has accepted a connection:
// CEPH_BANNER of include/linux/ceph/msgr.h, whose version is 027, and CEPH_BANNER_V2_PREFIX.
var (
	cephBanner   = []byte("ceph v0")
	cephBannerV2 = []byte("ceph v2\n")
)

// banner waits for a monitor's banner.
func banner() exchange {
	return exchange{reply: len(cephBannerV2), check: checkBanner}
}

func checkBanner(reply []byte) error {
	if !bytes.HasPrefix(reply, cephBanner) && !bytes.HasPrefix(reply, cephBannerV2) {
		return fmt.Errorf("no banner of Ceph: %w", serverpool.ErrForeign)
	}
	return nil
}
