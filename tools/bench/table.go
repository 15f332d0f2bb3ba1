package main

import (
	"fmt"
	"slices"
	"strings"
)

// A series holds one value per round.
type series []float64

func (s series) median() float64 {
	sorted := slices.Sorted(slices.Values(s))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// over divides round by round: rounds differ more than what is measured in one.
func (s series) over(floor series) series {
	ratios := make(series, len(s))
	for i := range s {
		ratios[i] = s[i] / floor[i]
	}
	return ratios
}

// String is the median with the extremes.
func (s series) String() string {
	return fmt.Sprintf("%.2f (%.2f..%.2f)", s.median(), slices.Min(s), slices.Max(s))
}

// raw lists the values.
func (s series) raw() string {
	var b strings.Builder
	for _, v := range s {
		decimals := 2
		if v >= 1e4 { // or it would not fit
			decimals = 0
		}
		fmt.Fprintf(&b, "%8.*f", decimals, v)
	}
	return b.String()
}

// printRow prints a row of a table: what was measured, the raw value of each
// round, and by turns what they come to, and the target if there is one.
func printRow(name, raw string, results ...string) {
	var b strings.Builder
	fmt.Fprintf(&b, "%-38s %-*s ", name, 8*rounds, raw)
	for i, r := range results {
		width := 20
		if i%2 == 1 {
			width = 6
		}
		fmt.Fprintf(&b, " %-*s", width, r)
	}
	fmt.Println(strings.TrimRight(b.String(), " "))
}
