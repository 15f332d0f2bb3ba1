//go:build !race

package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
)

// A real Telegraf, in both of its modes, makes of variables what vfsprobe does.
func TestVfsprobe_VariablesAreTelegrafs(t *testing.T) {
	environment := map[string]string{"SET": "value", "EMPTY": "", "lower": "case", "DOLLAR": "${SET}", "QUOTES": `a"b\c`}
	lookup := func(name string) (string, bool) {
		value, set := environment[name]
		return value, set
	}
	forms := []string{
		"${SET}", "$SET", "$SET.x", "${lower}", "$$", "$$SET", "$$$SET", "a$", "$1", "${1}", "${}", "${UNSET}", "$UNSET", "^a$|^b{2}$", "${DOLLAR}",
		"<${UNSET:-word}>", "<${UNSET-word}>", "<${EMPTY:-word}>", "<${EMPTY-word}>", "<${SET:-word}>", "<${UNSET:-}>", "<${UNSET:-a : b:-c}>",
		"<${UNSET:-${SET}}>", "<${UNSET:-${EMPTY:-${ALSO_UNSET:-deep}}}>", "<${UNSET:-${ALSO_UNSET}}>", "<${UNSET:-$5}>",
		"<${SET:+word}>", "<${EMPTY:+word}>", "<${EMPTY+word}>", "<${UNSET+word}>", "<${UNSET:+word}>", "<${SET:?no}>", "<${EMPTY?no}>",
		"<${SET", "${UNSET:-a", "<${SETé}>", "# ${SET}", "it's ${SET}",
	}
	for mode, forms := range map[string][]string{"--non-strict-env-handling": forms, "--strict-env-handling": append(forms, "${QUOTES}", "<${UNSET:-${QUOTES}}>")} {
		t.Run(mode, func(t *testing.T) {
			var text strings.Builder
			for i, form := range forms {
				fmt.Fprintf(&text, "t%02d = \"%s\" # ${UNSET:?a comment}\n", i, form)
			}
			expanded, err := config.Expand(text.String(), lookup)
			require.NoError(t, err)
			var ours map[string]string
			require.NoError(t, toml.Unmarshal([]byte(expanded), &ours))

			dir := t.TempDir()
			file, metrics := filepath.Join(dir, "telegraf.conf"), filepath.Join(dir, "metrics")
			require.NoError(t, os.WriteFile(file, []byte("\ufeff[[outputs.file]]\n  files = [\""+metrics+"\"]\n  data_format = \"influx\"\n[[inputs.disk]]\n  mount_points = [\"/\"]\n[global_tags]\n"+text.String()), 0o600))
			agent := exec.Command(binary(t, telegraf), "--once", mode, "--config", file)
			for name, value := range environment {
				agent.Env = append(agent.Env, name+"="+value)
			}
			out, err := agent.CombinedOutput()
			require.NoError(t, err, "%s", out)
			line, err := os.ReadFile(metrics)
			require.NoError(t, err)
			escaped := strings.NewReplacer(" ", `\ `, ",", `\,`, "=", `\=`) // line protocol
			require.Len(t, ours, len(forms))
			for _, tag := range slices.Sorted(maps.Keys(ours)) {
				value := ours[tag]
				if value == "" || strings.HasSuffix(value, `\`) {
					continue // what line protocol can't have
				}
				assert.Contains(t, string(line), ","+tag+"="+escaped.Replace(value), "%s", forms[slices.Index(slices.Sorted(maps.Keys(ours)), tag)])
			}
		})
	}
}
