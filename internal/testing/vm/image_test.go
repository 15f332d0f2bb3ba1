package vm

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestModuleFiles(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(
		"kernel/fs/nfs.ko: kernel/net/sunrpc.ko kernel/fs/lockd.ko\nkernel/fs/lockd.ko.xz: kernel/net/sunrpc.ko\nkernel/net/sunrpc.ko:\nkernel/md/dm-multipath.ko: kernel/md/dm-mod.ko\nkernel/md/dm-mod.ko:\nkernel/other.ko:\n"), 0o644))
	files, err := moduleFiles(dir, []string{"lockd", "nfs", "builtin"})
	require.NoError(t, err)
	assert.Equal(t, []string{"kernel/fs/lockd.ko.xz", "kernel/net/sunrpc.ko", "kernel/fs/nfs.ko", "kernel/fs/lockd.ko", "modules.dep"}, files)
	for _, name := range []string{"dm_multipath", "dm-multipath"} {
		files, err = moduleFiles(dir, []string{name})
		require.NoError(t, err)
		assert.Equal(t, []string{"kernel/md/dm-multipath.ko", "kernel/md/dm-mod.ko", "modules.dep"}, files, name)
	}
}

// TestArchive has cpio read what was written.
func TestArchive(t *testing.T) {
	if _, err := exec.LookPath("cpio"); err != nil {
		t.Skip("cpio is missing")
	}
	root := t.TempDir()
	for _, dir := range []string{"etc/empty", "left/out"} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	require.NoError(t, os.WriteFile(filepath.Join(root, "etc/odd"), []byte("12345"), 0o640))
	require.NoError(t, os.Symlink("odd", filepath.Join(root, "etc/link")))

	var b bytes.Buffer
	a := newArchive(&b)
	require.NoError(t, a.tree("", root, []string{"le*"}))
	require.NoError(t, a.tree("srv/tree", filepath.Join(root, "etc"), nil))
	require.NoError(t, a.add(File{filepath.Join(root, "etc/odd"), "opt/deep/copy"}))
	require.NoError(t, a.end())

	to := t.TempDir()
	command := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
	command.Dir, command.Stdin = to, &b
	out, err := command.CombinedOutput()
	require.NoError(t, err, string(out))
	for _, file := range []string{"etc/link", "srv/tree/link", "opt/deep/copy"} {
		text, err := os.ReadFile(filepath.Join(to, file))
		require.NoError(t, err)
		assert.Equal(t, "12345", string(text))
	}
	assert.DirExists(t, filepath.Join(to, "etc/empty"))
	assert.NoDirExists(t, filepath.Join(to, "left"))
	info, err := os.Stat(filepath.Join(to, "opt/deep/copy"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), info.Mode().Perm())
}

// TestSetInterpreter changes nothing but the path of the loader.
func TestSetInterpreter(t *testing.T) {
	const host = "/bin/true"
	program, err := os.ReadFile(host)
	require.NoError(t, err)
	copied := filepath.Join(t.TempDir(), "true")
	require.NoError(t, os.WriteFile(copied, program, 0o755))
	loaderOf := func(name string) string {
		file, err := elf.Open(name)
		require.NoError(t, err)
		defer file.Close()
		segment := interpreter(file)
		if segment == nil {
			return ""
		}
		path, err := io.ReadAll(segment.Open())
		require.NoError(t, err)
		return string(bytes.TrimRight(path, "\x00"))
	}
	loader := loaderOf(host)
	if loader == "" {
		t.Skip(host + " is static")
	}
	require.NoError(t, setInterpreter(copied, umlLoader))
	assert.Equal(t, umlLoader, loaderOf(copied))
	require.Error(t, exec.Command(copied).Run(), "there is no such loader here")
	beside := exec.Command(copied)
	beside.Dir = filepath.Dir(copied)
	require.NoError(t, os.Symlink(filepath.Dir(loader), filepath.Join(beside.Dir, umlLibraries)))
	require.NoError(t, beside.Run())

	require.ErrorContains(t, setInterpreter(copied, loader+"/longer"), "is too long")
	require.NoError(t, setInterpreter(copied, loader))
	written, err := os.ReadFile(copied)
	require.NoError(t, err)
	assert.Equal(t, program, written)
}
