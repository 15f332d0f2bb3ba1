// Command table prints the causes that an input names, as the table of its README.
package main

import (
	"fmt"
	"os"

	"github.com/vfsprobe/vfsprobe/internal/result"
)

func main() {
	title := "cause"
	if os.Args[1] == "nfslock" {
		title = "diagnosis"
	}
	fmt.Print(result.Table(title, result.Causes(os.Args[1])))
}
