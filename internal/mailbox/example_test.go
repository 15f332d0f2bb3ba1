package mailbox_test

import (
	"fmt"

	"github.com/vfsprobe/vfsprobe/internal/mailbox"
)

// What another goroutine posts is done by the one that opens the mailbox, which needs
// no lock for what is its own.
func ExampleMailbox() {
	m := mailbox.New()
	var answers []string
	go m.Post(func() { answers = append(answers, "an answer") })

	for len(answers) == 0 {
		<-m.Wake()
		m.Drain()
	}
	fmt.Println(answers)
	// Output: [an answer]
}
