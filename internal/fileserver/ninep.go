package fileserver

import (
	"encoding/binary"
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// Message types and limits of 9P2000, version(5) of Plan 9, and of 9P2000.L.
const (
	ninePTversion = 100
	ninePRversion = 101
	ninePRerror   = 107
	ninePRlerror  = 7
	ninePNoTag    = 0xffff
	ninePHeader   = 7 // size[4] type[1] tag[2]
	ninePMaxSize  = 8192
)

// version asks a 9P server for its version: size[4] Tversion tag[2] msize[4] version[s].
func version() exchange {
	const protocol = "9P2000.L"
	little := binary.LittleEndian
	request := little.AppendUint32(nil, uint32(ninePHeader+4+2+len(protocol)))
	request = append(request, ninePTversion)
	request = little.AppendUint16(request, ninePNoTag)
	request = little.AppendUint32(request, ninePMaxSize)
	request = little.AppendUint16(request, uint16(len(protocol)))
	return exchange{request: append(request, protocol...), reply: ninePHeader, check: checkVersion}
}

// checkVersion accepts a version, whichever it is, and an error.
func checkVersion(reply []byte) error {
	if len(reply) < ninePHeader {
		return fmt.Errorf("%d bytes: %w", len(reply), serverpool.ErrForeign)
	}
	size, kind, tag := binary.LittleEndian.Uint32(reply), reply[4], binary.LittleEndian.Uint16(reply[5:])
	known := kind == ninePRversion || kind == ninePRerror || kind == ninePRlerror
	if !known || tag != ninePNoTag || size < ninePHeader || size > ninePMaxSize {
		return fmt.Errorf("a message of type %d, tag %d and %d bytes: %w", kind, tag, size, serverpool.ErrForeign)
	}
	return nil
}
