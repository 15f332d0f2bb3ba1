package sunrpc_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/sunrpc"
	"github.com/vfsprobe/vfsprobe/internal/testing/rpchost"
)

func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestLookUp_ARealRPCBind(t *testing.T) {
	rpchost.StartRPCBind(t)
	for _, host := range []string{"127.0.0.1:111", "[::1]:111", "[fe80::1%lo]:111", "[::ffff:127.0.0.1]:111"} {
		for _, network := range []string{"tcp", "udp"} {
			t.Run(host+"/"+network, func(t *testing.T) {
				server := netip.MustParseAddrPort(host)
				ctx := within(t, limit)
				for _, version := range []uint32{2, 3, 4} {
					elapsed, err := sunrpc.Null(ctx, network, server, sunrpc.ProgramRPCBind, version)
					require.NoError(t, err)
					assert.Positive(t, elapsed)
					assert.Less(t, elapsed, limit)
				}

				_, err := sunrpc.Null(ctx, network, server, sunrpc.ProgramRPCBind, 7)
				answer := answerOf(t, err)
				assert.Equal(t, sunrpc.AnswerError{Status: sunrpc.ProgramMismatch, Low: 2, High: 4}, answer)
				assert.ErrorContains(t, err, "2 to 4")
				assert.Equal(t, "EPROGMISMATCH", sunrpc.ErrorName(err))

				_, err = sunrpc.Null(ctx, network, server, sunrpc.ProgramNSM, 1)
				assert.Equal(t, sunrpc.ProgramUnavailable, answerOf(t, err).Status)
				assert.Equal(t, "EPROGUNAVAIL", sunrpc.ErrorName(err))

				for _, transport := range []string{"tcp", "udp"} {
					self := sunrpc.Service{Program: sunrpc.ProgramRPCBind, Version: 2, Network: transport}
					port, err := sunrpc.GetPort(ctx, network, server, self)
					require.NoError(t, err)
					assert.EqualValues(t, sunrpc.PortRPCBind, port)

					self.Version = 4
					address, err := sunrpc.GetAddr(ctx, network, server, self)
					require.NoError(t, err)
					assert.EqualValues(t, sunrpc.PortRPCBind, address.Port())
					assert.Equal(t, server.Addr().Unmap().Is4(), address.Addr().Is4(), "%v", address)

					port, err = sunrpc.LookUp(ctx, network, server, self)
					require.NoError(t, err)
					assert.EqualValues(t, sunrpc.PortRPCBind, port)

					missing := sunrpc.Service{Program: sunrpc.ProgramNLM, Version: 4, Network: transport}
					for _, lookUp := range []func() error{
						func() error { _, err := sunrpc.GetPort(ctx, network, server, missing); return err },
						func() error { _, err := sunrpc.GetAddr(ctx, network, server, missing); return err },
						func() error { _, err := sunrpc.LookUp(ctx, network, server, missing); return err },
					} {
						err := lookUp()
						assert.Equal(t, sunrpc.NotRegistered, answerOf(t, err).Status)
						assert.Equal(t, "ENOTREGISTERED", sunrpc.ErrorName(err))
					}
				}
			})
		}
	}
}

// An unknown version of a known program has the port of another version.
func TestLookUp_RPCBindAnswersForOtherVersions(t *testing.T) {
	rpchost.StartRPCBind(t)
	server := netip.MustParseAddrPort("127.0.0.1:111")
	port, err := sunrpc.GetPort(within(t, limit), "udp", server, sunrpc.Service{Program: sunrpc.ProgramRPCBind, Version: 9, Network: "udp"})
	require.NoError(t, err)
	assert.EqualValues(t, sunrpc.PortRPCBind, port)
}

// answerOf is the refusal in the error, which must be one of a live server.
func answerOf(t *testing.T, err error) sunrpc.AnswerError {
	t.Helper()
	var answer *sunrpc.AnswerError
	require.ErrorAs(t, err, &answer)
	assert.True(t, sunrpc.Alive(err))
	assert.Equal(t, sunrpc.Answered, failure(t, err).Phase)
	return *answer
}

func failure(t *testing.T, err error) *sunrpc.Error {
	t.Helper()
	var failed *sunrpc.Error
	require.ErrorAs(t, err, &failed)
	return failed
}
