package scenario_test

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/scenario"
)

const complete = `
# What happens.
mount all
mount other server:/srv/home vers=3
observe

# More about it.
cut client
expect v3,other mountstat result timeout|stuck
expect v4 mountstat cause server_unreachable ; not yet: there is no cause
witness v3 statfs,readdir hangs
heal
recover
`

func TestParse(t *testing.T) {
	s, err := scenario.Parse("cut", complete)
	require.NoError(t, err)
	assert.Equal(t, "cut", s.Name)
	assert.Equal(t, "What happens.", s.Title)
	require.Len(t, s.Steps, 9)
	assert.Equal(t, 9*time.Second, s.Takes())
	long, err := scenario.Parse("long", complete+"wait 1m\nexpire v3/nested\n")
	require.NoError(t, err)
	assert.Equal(t, 91*time.Second, long.Takes())
	assert.Equal(t, scenario.Step{Line: 8, Verb: "cut", Arguments: []string{"client"}}, s.Steps[3])
	assert.Equal(t, &scenario.Statement{
		Mounts: []string{"v3", "other"}, Input: "mountstat", Field: "result", Values: []string{"timeout", "stuck"},
	}, s.Steps[4].Statement)
	assert.Equal(t, "there is no cause", s.Steps[5].Statement.NotYet)
	assert.Equal(t, &scenario.Statement{
		Mounts: []string{"v3"}, Calls: []string{"statfs", "readdir"}, Values: []string{"hangs"},
	}, s.Steps[6].Statement)
}

func TestParse_SaysWhatIsWrong(t *testing.T) {
	for name, test := range map[string]struct{ line, message string }{
		"verb":             {"brake client", `unknown verb "brake"`},
		"arguments":        {"cut", "usage: cut HOST"},
		"too many":         {"heal all", "usage: heal"},
		"host":             {"cut server", "want one of client, client2"},
		"mount":            {"expect v5 mountstat result ok", "v5 is not mounted"},
		"twice":            {"mount v3 server:/srv/data vers=3", "v3 is mounted twice"},
		"tolerance":        {"counts v3 mountstat hung_seconds some", "\"some\" is no number of seconds"},
		"no value":         {"expect v3 mountstat result |", "without a mount or value"},
		"reason":           {"expect v3 mountstat result ok ; not yet:", "lacks its reason"},
		"no statement":     {"heal ; not yet: because", "heal is no statement"},
		"nothing but that": {"; not yet: because", "nothing is marked"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := scenario.Parse("x", strings.Replace(complete, "heal", test.line+"\nheal", 1))
			assert.ErrorContains(t, err, test.message)
		})
	}
	for text, message := range map[string]string{
		"": "must be a comment",
		"# T\nmount all\nexpect v3 mountstat result ok\nobserve\nrecover": "line 3: expect comes before observe",
		"# T\nmount all\nobserve": "observe and recover are needed",
	} {
		_, err := scenario.Parse("x", text)
		assert.ErrorContains(t, err, message)
	}
}

func TestParse_AStatementHasRanges(t *testing.T) {
	s := scenario.Statement{Values: []string{"ok", "-1.5..2", "x..3", scenario.None}}
	for _, value := range []string{"ok", "-1.5", "0", "2", "2e0", "-"} {
		assert.True(t, s.Has(value), value)
	}
	for _, value := range []string{"", "2.1", "-1e9", "NaN", "1..2", "slow"} {
		assert.False(t, s.Has(value), value)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(complete)
	f.Add("; not yet:")
	f.Add("expect , | | ; not yet: x")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := scenario.Parse("fuzz", text)
		if err != nil {
			return
		}
		for _, step := range s.Steps {
			if st := step.Statement; st != nil && (len(st.Mounts) == 0 || len(st.Values) == 0 && !(st.Tolerance > 0)) {
				t.Errorf("line %d: %+v", step.Line, st)
			}
		}
	})
}
