package kmsg

import (
	"bytes"
	"fmt"
	"strconv"
	"time"
)

// Record is one message of the kernel's log, or of a program that wrote to it.
type Record struct {
	Sequence uint64
	Facility int           // 0 for the kernel itself, syslog(3)
	Level    int           // 0 emergency to 7 debug, syslog(2)
	Uptime   time.Duration // when it was logged, on the clock of the log: since boot, without suspend
	Text     string        // without the newline; raw bytes
	// At is about when it was logged: a Feed says so.
	At time.Time
}

// ParseRecord reads what one read(2) of /dev/kmsg returns
// (Documentation/ABI/testing/dev-kmsg):
//
//	6,339,5140900,-;NET: Registered protocol family 10
//	 SUBSYSTEM=net
//
// The lines that begin with a space are a dictionary, which is left out, as are
// fields that follow the flags. Bytes that can't be printed come as \x00.
func ParseRecord(content []byte) (Record, error) {
	prefix, text, found := bytes.Cut(content, []byte(";"))
	if !found || bytes.Count(prefix, []byte(",")) < 3 {
		return Record{}, fmt.Errorf("not a record of the kernel's log: %q", content)
	}
	var numbers [3]uint64
	for i := range numbers {
		var field []byte
		field, prefix, _ = bytes.Cut(prefix, []byte(","))
		number, err := strconv.ParseUint(string(field), 10, 63)
		if err != nil {
			return Record{}, fmt.Errorf("field %d of a record of the kernel's log: %w: %q", i+1, err, content)
		}
		numbers[i] = number
	}
	text, _, _ = bytes.Cut(text, []byte("\n"))
	const facilityShift = 3 // LOG_FACMASK, syslog.h
	return Record{
		Sequence: numbers[1],
		Facility: int(min(numbers[0]>>facilityShift, 1<<20)),
		Level:    int(numbers[0] & (1<<facilityShift - 1)),
		Uptime:   time.Duration(min(numbers[2], 1<<53)) * time.Microsecond,
		Text:     unescape(text),
	}, nil
}

// unescape turns \xNN into the byte (msg_add_ext_text, kernel/printk/printk.c).
func unescape(text []byte) string {
	if !bytes.Contains(text, []byte(`\x`)) {
		return string(text)
	}
	plain := make([]byte, 0, len(text))
	for i := 0; i < len(text); i++ {
		if i+4 <= len(text) && text[i] == '\\' && text[i+1] == 'x' {
			if b, err := strconv.ParseUint(string(text[i+2:i+4]), 16, 8); err == nil {
				plain = append(plain, byte(b))
				i += 3
				continue
			}
		}
		plain = append(plain, text[i])
	}
	return string(plain)
}
