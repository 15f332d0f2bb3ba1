package sunrpc_test

import (
	"testing"

	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

func TestMain(m *testing.M) { rpchost.Main(m) }
