package dentrycache

import (
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
	"github.com/vfsprobe/vfsprobe/internal/host"
	"github.com/vfsprobe/vfsprobe/internal/testing/journal"
)

func TestSettings_Bad(t *testing.T) {
	for problem, change := range map[string]func(*DentryCache){
		`directories: "srv"`:                     on("srv"),
		`directories: ""`:                        on(""),
		`directories: "/a\x00b"`:                 on("/a\x00b"),
		`directories: "/srv/" is there twice`:    on("/srv", "/srv/"),
		`directories: 17 of them`:                on(strings.Split(strings.Repeat(" /", 17), " ")[1:]...),
		`max_children = -1`:                      func(d *DentryCache) { d.MaxChildren = -1 },
		`top_sources = -1`:                       func(d *DentryCache) { d.TopSources = -1 },
		`top_cgroups = -2`:                       func(d *DentryCache) { d.TopCgroups = -2 },
		`source_threshold = -0.5`:                func(d *DentryCache) { d.SourceThreshold = -0.5 },
		`source_threshold = NaN`:                 func(d *DentryCache) { d.SourceThreshold = math.NaN() },
		`enoent_threshold = -1`:                  func(d *DentryCache) { d.ENOENTThreshold = -1 },
		`memory_share = 0:`:                      func(d *DentryCache) { d.MemoryShare = 0 },
		`memory_share = 25:`:                     func(d *DentryCache) { d.MemoryShare = 25 },
		`timeout = "9ms"`:                        func(d *DentryCache) { d.Timeout = config.Duration(9 * time.Millisecond) },
		`attribution = "bpf"`:                    func(d *DentryCache) { d.Attribution = "bpf" },
		"memory_share = 2: it must be more than": func(d *DentryCache) { d.MemoryShare, d.TopSources = 2, -1 },
	} {
		d := inputs.Inputs["dentrycache"]().(*DentryCache)
		d.Log = journal.New(t)
		change(d)
		require.ErrorContains(t, d.Init(), problem)
	}
}

// A mistake in the file is an error with its line.
func TestSettings_MistakesInTheFile(t *testing.T) {
	creators := map[string]inputs.Creator{"dentrycache": inputs.Inputs["dentrycache"]}
	for text, want := range map[string]string{
		"directories = \"/\"":        "dentrycache.toml:2",
		"directory = [\"/\"]":        "dentrycache.toml:2",
		"memory_share = \"25%\"":     "dentrycache.toml:2",
		"timeout = \"soon\"":         "dentrycache.toml:2",
		"lookup_probe = \"yes\"":     "dentrycache.toml:2",
		"\nattribution = [\"auto\"]": "dentrycache.toml:3",
		"max_children = 1.5":         "dentrycache.toml:2",
	} {
		_, err := config.Parse("dentrycache.toml", []byte("[[inputs.dentrycache]]\n"+text+"\n"), os.LookupEnv, creators)
		require.ErrorContains(t, err, want, text)
	}
}

func TestSettings_InAContainer(t *testing.T) {
	proc := t.TempDir()
	write(t, proc, "sys/kernel/osrelease", "6.1.0\n")
	t.Setenv("HOST_PROC", proc)
	t.Setenv("HOST_SYS", "/host/sys")
	t.Setenv("HOST_MOUNT_PREFIX", "/host/")
	d := inputs.Inputs["dentrycache"]().(*DentryCache)
	d.Log = journal.New(t)
	require.NoError(t, d.Init())
	defer d.host.Prober.Close()
	assert.Equal(t, host.FindRoots(os.Getenv), d.host.Roots)
	assert.Equal(t, "/host", d.host.MountPrefix)
}
