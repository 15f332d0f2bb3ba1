package attribution

// Names of maps, programs and variables in the BPF object.
const (
	dentryMapDirectories   = "directories"
	dentryMapRows          = "rows"
	dentryMapSeen          = "seen"
	dentryMapTotals        = "totals"
	dentryMapWalks         = "walks"
	dentryProgSysExit      = "sys_exit"
	dentryProgSysExitTyped = "sys_exit_typed"
	dentryProgWalkOn       = "walk_on"
	dentryProgWalkOpen     = "walk_open"
	dentryVarSecond        = "second"
	dentryVarSyscalls      = "syscalls"
)
