package kmsg

import "strings"

// ParseHungTask returns the name of the process that a message reports as hung
// (hung_task_info, kernel/hung_task.c):
//
//	INFO: task NAME:PID blocked for more than 122 seconds.
//	INFO: task NAME:PID blocked in I/O wait for more than 122 seconds.
func ParseHungTask(text string) (comm string, found bool) {
	rest, found := strings.CutPrefix(text, "INFO: task ")
	if !found {
		return "", false
	}
	end := strings.LastIndex(rest, " blocked ")
	if end < 0 || !strings.Contains(rest[end:], " for more than ") {
		return "", false
	}
	colon := strings.LastIndexByte(rest[:end], ':') // names hold any byte
	if colon < 0 {
		return "", false
	}
	return rest[:colon], true
}
