package main

import (
	"testing"
	"time"
)

func TestNumber(t *testing.T) {
	at := time.Unix(1795258245, 0).UTC()
	for described, want := range map[string]string{
		"v1.2.0": "1.2.0", "1.2.0": "1.2.0", "v1.2.0-5-gabcdef0": "1.2.0+5.gabcdef0", "v1.2.0-5-gabcdef0-dirty": "1.2.0+5.gabcdef0.dirty",
		"51ef661": "0.0.0~git20261121105045.51ef661", "abcdef0-dirty": "0.0.0~git20261121105045.abcdef0+dirty", "vfs": "0.0.0~git20261121105045.vfs",
	} {
		if got := number(described, at); got != want {
			t.Errorf("%s: %s, want %s", described, got, want)
		}
	}
}
