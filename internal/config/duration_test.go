package config_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/config"
)

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"0":       0,
		"0s":      0,
		"5s":      5 * time.Second,
		"1m30s":   90 * time.Second,
		"1h2m3s":  time.Hour + 2*time.Minute + 3*time.Second,
		"250ms":   250 * time.Millisecond,
		"1.5s":    1500 * time.Millisecond,
		"100us":   100 * time.Microsecond,
		"100µs":   100 * time.Microsecond,
		"1d":      day,
		"1.5d":    36 * time.Hour,
		"1d12h":   36 * time.Hour,
		"1d1h1m":  day + time.Hour + time.Minute,
		"0.5d1s":  12*time.Hour + time.Second,
		"10":      10 * time.Second,
		"2.5":     2500 * time.Millisecond,
		"1e3":     1000 * time.Second,
		"36500d":  36500 * day,
		"876000h": 36500 * day,
	} {
		t.Run(text, func(t *testing.T) {
			var d config.Duration
			require.NoError(t, d.UnmarshalText([]byte(text)))
			assert.Equal(t, want, time.Duration(d))
		})
	}
}

func TestDuration_RefusesNonsense(t *testing.T) {
	for text, want := range map[string]string{
		"":             "want a form like",
		" ":            "want a form like",
		"abc":          "want a form like",
		"s":            "want a form like",
		"d":            "want a form like",
		"5x":           "want a form like",
		"5 s":          "want a form like",
		"1d 12h":       "want a form like",
		"1d1d":         "want a form like",
		"1d5":          "want a form like",
		"1w":           "want a form like",
		"1m30":         "want a form like",
		"true":         "want a form like",
		"-1s":          "is negative",
		"-1":           "is negative",
		"-0.5d":        "is negative",
		"-1d12h":       "is negative",
		"36501d":       "out of range",
		"999999999h":   "want a form like", // over what time.ParseDuration takes
		"1e30":         "out of range",
		"99999999999s": "want a form like",
		"1e400":        "want a form like",
		"NaN":          "out of range",
		"nan":          "out of range",
		"NaNd":         "out of range",
		"Inf":          "out of range",
		"-Inf":         "out of range",
		"infd":         "out of range",
	} {
		t.Run(text, func(t *testing.T) {
			d := config.Duration(time.Minute)
			assert.ErrorContains(t, d.UnmarshalText([]byte(text)), want)
			assert.Equal(t, config.Duration(time.Minute), d, "a refused duration changes nothing")
		})
	}
}

func TestDuration_IsShownAsGoShowsIt(t *testing.T) {
	assert.Equal(t, "1m30s", config.Duration(90*time.Second).String())
}

func FuzzDuration(f *testing.F) {
	for _, text := range []string{"", "5s", "1m30s", "1d", "1.5d12h", "10", "2.5", "-1s", "NaN", "1e308", "0x1p-2", "d", "1_0", "infd", "9223372036s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		d := config.Duration(-1)
		if err := d.UnmarshalText([]byte(text)); err != nil {
			assert.Equal(t, config.Duration(-1), d, "a refused duration changes nothing")
			return
		}
		require.GreaterOrEqual(t, d, config.Duration(0))
		require.LessOrEqual(t, d, config.Duration(100*365*24*time.Hour))
		// Where time.ParseDuration understands it too, they agree. Beyond 2^53
		// nanoseconds, 104 days, the last ones are lost.
		if want, err := time.ParseDuration(text); err == nil && want < 1<<53 {
			assert.Equal(t, want, time.Duration(d), "%q", text)
		}
		var again config.Duration
		require.NoError(t, again.UnmarshalText([]byte(d.String())), "what is shown can be read")
		assert.InDelta(t, float64(d), float64(again), math.Max(1, float64(d)/1e15))
	})
}
