package smbclient_test

import (
	"fmt"
	"os"

	"github.com/vfsprobe/vfsprobe/internal/smbclient"
)

// What /proc/fs/cifs/DebugData said while the server did not take the login.
func ExampleOf() {
	text, err := os.ReadFile("testdata/6.1-no-session.txt")
	if err != nil {
		fmt.Println(err)
		return
	}
	shares := smbclient.Parse(text)
	fmt.Println(smbclient.Of(shares, "//nas/data") == smbclient.NoSession)
	fmt.Println(smbclient.Of(shares, "//nas/other") == smbclient.Unknown)
	// Output:
	// true
	// true
}
