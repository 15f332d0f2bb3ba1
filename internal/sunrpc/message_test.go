package sunrpc

import (
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/require"
)

func FuzzReply(f *testing.F) {
	const xid = 7
	for _, message := range [][]byte{
		nil,
		words(nil, xid, typeReply, msgAccepted, authNone, 0, acceptSuccess, 2049),
		text(words(nil, xid, typeReply, msgAccepted, 1, 4, 9, acceptSuccess), "192.0.2.1.8.1"),
		words(nil, xid, typeReply, msgAccepted, authNone, 0, acceptProgMismatch, 2, 4),
		words(nil, xid, typeReply, msgAccepted, authNone, 0xffffffff, 0),
		words(nil, xid, typeReply, msgAccepted, authNone, 0, acceptSuccess, 0, nlmDeniedInGrace),
		words(nil, xid, typeReply, msgAccepted, authNone, 0, acceptSuccess, nfsErrGrace, 0, 2),
		words(text(words(nil, xid, typeReply, msgAccepted, authNone, 0, acceptSuccess, 0, nlmDenied, 1, 7), "7@host"), 0, 5, 0, 1),
		words(nil, xid, typeReply, msgDenied, rejectAuthError, 5),
		words(nil, xid, typeReply, msgDenied, rejectRPCMismatch, 3, 4),
	} {
		f.Add(message)
		f.Add(append(words(nil, lastFragment|uint32(len(message))), message...))
	}
	known := func(err error) bool {
		_, answer := errors.AsType[*AnswerError](err)
		return err == nil || answer || errors.Is(err, ErrMalformed)
	}
	buffer := make([]byte, maxReply)
	f.Fuzz(func(t *testing.T, input []byte) {
		results, ours, err := parseReply(input, xid)
		require.True(t, known(err), "%v", err)
		require.True(t, ours || err == nil && results == nil)
		require.Less(t, len(results), len(input)+1)
		_, err = parsePort(results)
		require.True(t, known(err), "%v", err)
		_, err = parseAddress(results)
		require.True(t, known(err), "%v", err)
		require.False(t, nlmInGrace(results) && len(results) < 8)
		require.False(t, nfsInGrace(results) && len(results) < 4)
		require.Regexp(t, `^[!-~]{0,64}$`, holderHost(results))

		record, err := readRecord(bytes.NewReader(input), buffer)
		require.True(t, known(err) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF), "%v", err)
		require.LessOrEqual(t, len(record), maxReply)
	})
}
