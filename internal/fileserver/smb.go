package fileserver

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/serverpool"
)

// The sizes of MS-SMB2 2.1 and 2.2.1, and of the request without its dialects, 2.2.3.
const (
	smbTransportHeader = 4
	smbHeader          = 64
	smbNegotiateBody   = 36
)

// The beginnings of headers, of MS-SMB2 2.2.1 and of its predecessor, MS-CIFS 2.2.3.1.
var (
	smb2Protocol = []byte{0xfe, 'S', 'M', 'B'}
	smb1Protocol = []byte{0xff, 'S', 'M', 'B'}
)

// negotiate asks an SMB server which dialect it speaks, SMB2 NEGOTIATE of MS-SMB2 2.2.3. A
// server answers that before it knows who asks. 3.1.1 is not offered, since it takes contexts;
// all that speak it speak 3.0.2 as well, or answer with an error, which is an answer.
func negotiate() exchange {
	dialects := []uint16{0x0202, 0x0210, 0x0300, 0x0302}
	message := make([]byte, smbHeader+smbNegotiateBody, smbHeader+smbNegotiateBody+2*len(dialects))
	copy(message, smb2Protocol)
	little := binary.LittleEndian
	little.PutUint16(message[4:], smbHeader)
	little.PutUint16(message[14:], 1) // CreditRequest; the command is 0, NEGOTIATE
	body := message[smbHeader:]
	little.PutUint16(body, smbNegotiateBody)
	little.PutUint16(body[2:], uint16(len(dialects)))
	little.PutUint16(body[4:], 1) // SMB2_NEGOTIATE_SIGNING_ENABLED
	copy(body[12:28], "vfsprobe") // ClientGuid: whoever reads a trace knows it
	for _, d := range dialects {
		message = little.AppendUint16(message, d)
	}
	// The direct TCP transport: a zero, and the length in three bytes.
	request := append(binary.BigEndian.AppendUint32(nil, uint32(len(message))), message...)
	return exchange{request: request, reply: smbTransportHeader + smbHeader/2, check: checkNegotiate}
}

// checkNegotiate accepts any answer with a header of SMB2 or SMB1, be it an error.
func checkNegotiate(reply []byte) error {
	if len(reply) < smbTransportHeader+len(smb2Protocol) || reply[0] != 0 {
		return fmt.Errorf("no SMB message: %w", serverpool.ErrForeign)
	}
	if header := reply[smbTransportHeader:]; !bytes.HasPrefix(header, smb2Protocol) && !bytes.HasPrefix(header, smb1Protocol) {
		return fmt.Errorf("no SMB header: %w", serverpool.ErrForeign)
	}
	return nil
}
