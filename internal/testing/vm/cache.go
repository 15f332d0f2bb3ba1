package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockInterval is how often a lock is tried that another process has.
const lockInterval = 200 * time.Millisecond

// cached returns the path of what has this name in the user's cache. If there is none,
// build makes it, at another path first. One process builds at a time.
func cached(ctx context.Context, name string, build func(path string) error) (string, error) {
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("looking for %s: %w", name, err)
	}
	dir = filepath.Join(dir, "vfsprobe", "vm")
	path := filepath.Join(dir, name)
	if exists(path) {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the cache: %w", err)
	}
	unlock, err := lock(ctx, filepath.Join(dir, "lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if exists(path) {
		return path, nil
	}
	work, err := os.MkdirTemp(dir, "build-")
	if err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	defer os.RemoveAll(work)
	fresh := filepath.Join(work, "fresh")
	if err := build(fresh); err != nil {
		return "", fmt.Errorf("building %s: %w", name, err)
	}
	if err := os.Rename(fresh, path); err != nil {
		return "", fmt.Errorf("keeping %s: %w", name, err)
	}
	return path, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// lock waits until this process has the lock of a file.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("locking the cache: %w", err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = file.Close() }, nil
		}
		if err == unix.EWOULDBLOCK || err == unix.EINTR {
			select {
			case <-time.After(lockInterval):
				continue
			case <-ctx.Done():
				err = fmt.Errorf("another process has it: %w", ctx.Err())
			}
		}
		return nil, fmt.Errorf("locking %s: %w", path, errors.Join(err, file.Close()))
	}
}
