package attribution

import (
	"errors"
	"time"

	"github.com/vfsprobe/vfsprobe/internal/prober"
)

// A Walker counts the children of directories in the dentry cache.
type Walker struct{}

// A Request is for one walk.
type Request struct {
	// Path of the directory, as seen by this process.
	Path string
	// Check gives Key, Group and Trusted for the prober, whose helper opens the
	// directory. Its Plan is not used.
	Check prober.Check
	// Timeout of the whole. Default 5 s.
	Timeout time.Duration
	// MaxChildren ends the walk early. 0: no limit but Timeout.
	MaxChildren int64
	// Names is how many of the newest children are named, at most 16. Names can
	// be confidential.
	Names int
}

// A Child of a directory.
type Child struct {
	Name     string // any bytes but 0 and /
	Negative bool
}

// A Directory is the result of a walk.
type Directory struct {
	Device Device // of the superblock (s_dev)
	// StatDevice is what stat(2) calls the device: another one on btrfs.
	StatDevice Device
	Inode      uint64
	FSType     string
	// KeepsNegatives is false for file systems that have no negative dentries,
	// such as tmpfs.
	KeepsNegatives bool
	Children       int64 // negative ones included
	Negative       int64
	// Complete is false where Children is a lower bound, for the reason that
	// Capped, Disturbed or TimedOut gives.
	Complete  bool
	Capped    bool // MaxChildren reached
	Disturbed bool // the children changed too fast
	TimedOut  bool
	// Elapsed time of the walk itself, waiting for a CPU included, and the part
	// of it spent in the walk's chunks.
	Elapsed time.Duration
	Newest  []Child // newest first
}

// OpenWalker loads the programs. The error says what the kernel or this
// process's privileges lack.
func OpenWalker(p *prober.Prober) (*Walker, error) {
	return nil, errors.ErrUnsupported
}

// Walk counts the children of one directory. It blocks for at most the timeout
// and a twentieth of it (but at least 0.1 s); the file system is touched by a
// helper of the prober only, so call it in a goroutine of its own. Walks run
// one at a time.
//
// A directory that could not be opened is an error of type [*OpenError].
func (w *Walker) Walk(r Request) (Directory, error) { return Directory{}, errors.ErrUnsupported }

// An OpenError says that a directory could not be opened for a walk.
type OpenError struct {
	Path   string
	Report prober.Report
}

func (e *OpenError) Error() string { return "open " + e.Path + ": " + e.Report.String() }

// Close unloads the programs.
func (w *Walker) Close() error { return nil }
