package attribution

// Names of maps, programs and variables in the BPF object.
const (
	dentryMapDirectories       = "directories"
	dentryMapRows              = "rows"
	dentryMapSeen              = "seen"
	dentryMapTotals            = "totals"
	dentryMapWalks             = "walks"
	dentryProgSchedSwitch      = "sched_switch"
	dentryProgSysExit          = "sys_exit"
	dentryProgSysExitCounted   = "sys_exit_counted"
	dentryProgSysExitTyped     = "sys_exit_typed"
	dentryProgWalkOn           = "walk_on"
	dentryProgWalkOpen         = "walk_open"
	dentryVarCountFromRunqueue = "count_from_runqueue"
	dentryVarEpoch             = "epoch"
	dentryVarMemoryV1          = "memory_v1"
	dentryVarSecond            = "second"
	dentryVarSyscalls          = "syscalls"
)
