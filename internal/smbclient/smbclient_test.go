package smbclient

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestParse(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		version, says, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".txt"), "-")
		want := map[string]State{"good": Good, "good-extra-channel": Good, "no-session": NoSession, "logging-in": LoggingIn, "no-tree": NoTree, "disconnected": Disconnected}[says]
		shares := Parse(text)
		assert.Equal(t, want, Of(shares, "//nas/data"), file)
		assert.Equal(t, want, Of(shares, "//NAS/Data/some/where"), file)
		assert.Equal(t, Unknown, Of(shares, "//nas/other"), file)
		assert.Equal(t, Unknown, Of(shares, "//nas/IPC$"), "it is no mount's")
		if version == "6.1" {
			require.Len(t, shares, 2)
			assert.Equal(t, `\\nas\the Mounts: of\it`, shares[1].Name)
		}
	}
}

// Two users of a share have two sessions.
func TestOf_TakesNoOthersSession(t *testing.T) {
	two := []Share{{`\\nas\data`, Good}, {`\\nas\data`, NoSession}, {`\\nas\more`, NoTree}, {`\\nas\more`, NoTree}}
	assert.Equal(t, Unknown, Of(two, "//nas/data"))
	assert.Equal(t, NoTree, Of(two, "//nas/more"))
	assert.Equal(t, NoSession, OfFailing(two, "//nas/data"), "whose mount fails, has not the session that works")
	assert.Equal(t, NoTree, OfFailing(two, "//nas/more"))
	three := append(two, Share{`\\nas\data`, NoTree})
	assert.Equal(t, Unknown, OfFailing(three, "//nas/data"))
	assert.Equal(t, Unknown, OfFailing([]Share{{`\\nas\data`, Good}}, "//nas/data"))
	for _, source := range []string{"", "nas:/data", "//nas", "/dev/sda1", "//"} {
		assert.Equal(t, Unknown, Of(two, source), source)
	}
}

func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.txt")
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(f, err)
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		for _, s := range Parse(text) {
			require.True(t, strings.HasPrefix(s.Name, `\\`))
			Of([]Share{s}, s.Name)
		}
	})
}
