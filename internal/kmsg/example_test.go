package kmsg_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/kmsg"
)

func ExampleParse() {
	record, err := kmsg.ParseRecord([]byte("4,1702,88123456,-;nfs: server nas not responding, still trying\n"))
	if err != nil {
		fmt.Println(err)
		return
	}
	message, found := kmsg.Parse(record.Text)
	fmt.Println(record.Uptime, message.Kind, message.Server, found)
	// Output: 1m28.123456s not_responding nas true
}

func ExampleParseDisk() {
	message, found := kmsg.ParseDisk(kmsg.Record{Text: "EXT4-fs (sdb1): Remounting filesystem read-only"})
	fmt.Println(message.Kind, message.Device, found)
	// Output: turned_read_only sdb1 true
}
