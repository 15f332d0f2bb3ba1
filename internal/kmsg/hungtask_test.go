package kmsg

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParseHungTask(t *testing.T) {
	for text, want := range map[string]string{
		"INFO: task vfsp:abcdefghij:4711 blocked for more than 122 seconds.":      "vfsp:abcdefghij",
		"INFO: task dd:7 blocked in I/O wait for more than 10 seconds.":           "dd",
		"INFO: task a blocked b:7 blocked for more than 122 seconds.":             "a blocked b",
		"INFO: task vfsp:abc blocked by something":                                "",
		"INFO: rcu_sched detected stalls on CPUs/tasks":                           "",
		"task vfsp:abcdefghij:4711 blocked for more than 122 seconds.":            "",
		"INFO: task 4711 blocked for more than 122 seconds.":                      "",
		"INFO: task khungtaskd:1 is blocked on a mutex likely owned by task x:2.": "",
	} {
		comm, found := ParseHungTask(text)
		assert.Equal(t, want != "", found, text)
		if found {
			assert.Equal(t, want, comm, text)
		}
	}
}

func FuzzParseHungTask(f *testing.F) {
	f.Add("INFO: task vfsp:abcdefghij:4711 blocked for more than 122 seconds.")
	f.Fuzz(func(t *testing.T, text string) {
		if comm, found := ParseHungTask(text); found {
			assert.True(t, strings.HasPrefix(text, "INFO: task "+comm+":"))
		}
	})
}
