package schema_test

import (
	"encoding/json"
	"os"
	"testing"

	"github.com/influxdata/telegraf/plugins/inputs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/execd"
	"github.com/vfsprobe/vfsprobe/internal/schema"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/dentrycache"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/mountstat"
	_ "github.com/vfsprobe/vfsprobe/plugins/inputs/nfslock"
)

// released has what the last release emits, by measurement: its tags, and the kinds of its
// fields.
type released map[string]struct {
	Tags   []string               `json:"tags"`
	Fields map[string]schema.Kind `json:"fields"`
}

// emitted is what is emitted now.
func emitted() released {
	measurements := execd.Schema()
	for _, create := range inputs.Inputs {
		if described, ok := create().(schema.Describer); ok {
			measurements = append(measurements, described.Schema()...)
		}
	}
	all := make(released)
	for _, m := range measurements {
		one := all[m.Name]
		one.Fields = make(map[string]schema.Kind)
		for _, tag := range m.Tags {
			one.Tags = append(one.Tags, tag.Name)
		}
		for _, fields := range m.Fields {
			for _, name := range fields.Names {
				one.Fields[name] = fields.Kind
			}
		}
		all[m.Name] = one
	}
	return all
}

// What a release has emitted stays, docs/UPGRADING.md: no measurement, tag or field goes, and
// no field changes its type. tools/release writes the file anew, with RELEASED set.
func TestSchema_WhatWasReleasedStays(t *testing.T) {
	const file = "testdata/released.json"
	now := emitted()
	require.Greater(t, len(now), 10)
	if os.Getenv("RELEASED") != "" {
		content, err := json.MarshalIndent(now, "", "  ")
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(file, append(content, '\n'), 0o644))
	}
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	var before released
	require.NoError(t, json.Unmarshal(content, &before))
	for name, was := range before {
		is, there := now[name]
		if !assert.True(t, there, "the measurement %s is gone", name) {
			continue
		}
		for _, tag := range was.Tags {
			assert.Contains(t, is.Tags, tag, "a tag of %s is gone", name)
		}
		for field, kind := range was.Fields {
			assert.Equal(t, kind, is.Fields[field], "the field %s of %s", field, name)
		}
	}
}
