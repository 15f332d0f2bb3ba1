package fault_test

import (
	"fmt"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/fault"
	"github.com/vfsprobe/vfsprobe/internal/result"
)

// A mount answers, hangs, and answers again after a minute and a half.
func ExampleHistory_Observe() {
	var history fault.History
	start := time.Now().Add(-time.Hour)
	for _, check := range []struct {
		after time.Duration
		code  result.Code
	}{
		{0, result.OK},
		{30 * time.Second, result.Timeout},
		{60 * time.Second, result.Stuck},
		{120 * time.Second, result.OK},
	} {
		lasted := history.Observe(fault.Observation{
			Code:     check.code,
			Hangs:    check.code != result.OK,
			Answered: check.code == result.OK,
			At:       start.Add(check.after),
		})
		fmt.Println(check.code, history.Hung(), lasted)
	}
	fmt.Println(history.Recoveries, history.FaultTotal)
	// Output:
	// ok false 0s
	// timeout true 0s
	// stuck true 30s
	// ok false 1m30s
	// 1 1m30s
}
