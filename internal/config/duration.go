package config

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Duration is a span of time as Telegraf's configuration writes it: "5s",
// "1h30m", "1d", or a number of seconds.
type Duration time.Duration

// UnmarshalText reads a duration. Negative ones are refused.
func (d *Duration) UnmarshalText(text []byte) error {
	value, err := parseDuration(string(text))
	if err != nil {
		return err
	}
	if value < 0 {
		return fmt.Errorf("duration %q is negative", text)
	}
	*d = Duration(value)
	return nil
}

// UnmarshalTOML reads a duration as it stands in the file. Without it the TOML
// library would take an integer for nanoseconds, and would not say where a bad
// number is.
func (d *Duration) UnmarshalTOML(raw []byte) error {
	var document struct{ V any }
	err := toml.Unmarshal(append([]byte("v = "), raw...), &document)
	if err == nil {
		switch value := document.V.(type) {
		case string:
			err = d.UnmarshalText([]byte(value))
		case int64, float64:
			err = d.UnmarshalText(fmt.Append(nil, value))
		default:
			err = errors.New("want a duration like \"5s\", \"1m30s\" or \"1d\", or a number of seconds")
		}
	}
	if err != nil {
		return unstable.NewParserError(raw, "%s", err)
	}
	return nil
}

func (d Duration) String() string { return time.Duration(d).String() }

func parseDuration(text string) (time.Duration, error) {
	if seconds, err := strconv.ParseFloat(text, 64); err == nil {
		return inRange(text, seconds*float64(time.Second))
	}
	days, rest, found := strings.Cut(text, "d")
	if !found && text != "" {
		days, rest = "0", text
	}
	n, err := strconv.ParseFloat(days, 64)
	if err != nil {
		return 0, fmt.Errorf("duration %q: want a form like 5s, 1m30s or 1d", text)
	}
	var remainder time.Duration
	if rest != "" {
		if remainder, err = time.ParseDuration(rest); err != nil {
			return 0, fmt.Errorf("duration %q: want a form like 5s, 1m30s or 1d", text)
		}
	}
	return inRange(text, n*24*float64(time.Hour)+float64(remainder))
}

func inRange(text string, nanoseconds float64) (time.Duration, error) {
	const limit = float64(100 * 365 * 24 * time.Hour)
	if !(nanoseconds >= -limit && nanoseconds <= limit) {
		return 0, fmt.Errorf("duration %q is out of range", text)
	}
	return time.Duration(nanoseconds), nil
}
