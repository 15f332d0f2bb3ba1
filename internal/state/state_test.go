package state

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/metric"
	"github.com/vfsprobe/vfsprobe/internal/prober"
	"github.com/vfsprobe/vfsprobe/internal/testing/faultfs"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

func TestMain(m *testing.M) { faultfs.Main(m) }

const patience = 20 * time.Second

func read(name string, _ int, _ time.Duration) ([]byte, error) { return os.ReadFile(name) }

func open(t *testing.T, path string) (*Store, *journal.Journal) {
	t.Helper()
	log := journal.New(t)
	p := prober.New(prober.Options{Warnf: log.Warnf})
	t.Cleanup(p.Close)
	return Open(path, "/proc", p, log, read), log
}

func resultOf(path string, code int64) *metric.Metric {
	return metric.New("mountstat", map[string]string{"path": path}, map[string]any{"result_code": code}, time.Now())
}

func TestStore_KeepsWhatIsPut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	s, log := open(t, path)
	assert.Nil(t, s.Get("a"))
	long := strings.Repeat("x", 3*part) // of several helpers
	s.Put("a", long)
	s.Put("gone", 1)
	s.Count("counters", 7)
	s.Put("gone", nil)
	s.Close(patience)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode())
	assert.NoFileExists(t, path+".new")

	s, log2 := open(t, path)
	assert.JSONEq(t, `"`+long+`"`, string(s.Get("a")))
	assert.Equal(t, "7", string(s.Get("counters")))
	assert.Nil(t, s.Get("gone"))
	s.Count("counters", 8)
	assert.Equal(t, "7", string(s.First("counters")), "of the earlier run")
	assert.Empty(t, log.About(""))
	assert.Empty(t, log2.About(""))
}

func TestStore_WritesSeldom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	s, _ := open(t, path)
	s.written = time.Now().Add(-writeInterval / 2)
	s.Put("a", 1)
	s.Save()
	assert.False(t, s.writing)
	s.written = time.Now().Add(-2 * writeInterval)
	s.Save()
	require.Eventually(t, func() bool { _, err := os.Stat(path); return err == nil }, patience, time.Millisecond)
	require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.writing }, patience, time.Millisecond)
	s.written = time.Now().Add(-2 * writeInterval)
	s.Count("n", 1)
	s.Save()
	assert.False(t, s.writing, "counters can wait")
	s.Put("a", 1)
	s.Save()
	assert.False(t, s.writing, "nothing has changed")
}

func TestStore_WritesNothingToAFileSystemAtFault(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.json")
	s, _ := open(t, path)
	mount := filepath.Dir(path)
	observe := func(all ...*metric.Metric) {
		for _, m := range all {
			s.Observe(m)
		}
	}
	observe(resultOf("/", 0), resultOf(mount, 7), resultOf(mount+"x", 0), metric.New("other", nil, map[string]any{"a": 1}, time.Now()))
	s.Put("a", 1)
	s.Close(patience)
	assert.NoFileExists(t, path)
	observe(resultOf(mount, 0), resultOf("/", 7))
	s.Close(patience)
	assert.FileExists(t, path)
}

// A file system that hangs without having been at fault before costs a helper.
func TestStore_IsNotCaughtByAFileSystemThatHangs(t *testing.T) {
	faultfs.Require(t)
	fs := faultfs.New(t)
	fs.Silence()
	s, _ := open(t, "")
	assert.False(t, s.Keeps())
	s.path = filepath.Join(fs.Dir, "state.json")
	s.Put("a", 1)
	began := time.Now()
	s.Save()
	s.Close(10 * time.Millisecond)
	assert.Less(t, time.Since(began), writeTimeout/2)
	fs.Abort()
	require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return !s.writing && s.failed != "" }, patience, 10*time.Millisecond)
}

func TestStore_IgnoresWhatIsOfNoUse(t *testing.T) {
	for name, c := range map[string]struct{ content, says, earlier string }{
		"nonsense":        {"{", "it can't be understood, and is ignored", ""},
		"another format":  {`{"format":2,"kept":{"a":1}}`, "it has the format 2", ""},
		"an earlier boot": {`{"format":1,"boot_id":"x","kept":{"a":1}}`, "", "1"},
		"nothing kept":    {`{"format":1}`, "", ""},
		"empty":           {"", "it can't be understood, and is ignored", ""},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state.json")
			require.NoError(t, os.WriteFile(path, []byte(c.content), 0o600))
			s, log := open(t, path)
			assert.Nil(t, s.Get("a"))
			assert.Equal(t, c.earlier, string(s.Earlier("a")))
			if c.says != "" {
				assert.Len(t, log.About(c.says), 1)
			} else {
				assert.Empty(t, log.About(""))
			}
			s.Put("a", 2)
			s.Close(patience)
			s, _ = open(t, path)
			assert.Equal(t, "2", string(s.Get("a")), "it works nevertheless")
		})
	}
	_, log := open(t, t.TempDir()) // a directory
	assert.Len(t, log.About("what was known before is lost"), 1)
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"format":1,"boot_id":"","kept":{"a":1}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		kept, _, err := parse(content)
		if err == nil {
			_, err = json.Marshal(kept)
			assert.NoError(t, err)
		}
	})
}
