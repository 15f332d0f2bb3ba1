//go:build !race

package dashboards

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/vfsprobe/vfsprobe/internal/testing/nfsvm/influx"
	"github.com/vfsprobe/vfsprobe/tools/dashboards/alerts"
)

// documented reads the list of metrics in an input's README.
func documented(readme string) []Names {
	_, list, _ := strings.Cut(readme, "\n## Metrics\n")
	list, _, _ = strings.Cut(list, "\n## ")
	// Remarks in parentheses can be long and nested once.
	remark := regexp.MustCompile(`\((?:[^()]|\([^()]*\))*\)`)
	var all []Names
	var into *[]string
	for line := range strings.Lines(remark.ReplaceAllString(list, "")) {
		indent := len(line) - len(strings.TrimLeft(line, " "))
		text := strings.TrimSpace(line)
		item, isItem := strings.CutPrefix(text, "- ")
		switch {
		case text == "":
		case isItem && indent == 0:
			all = append(all, Names{Measurement: strings.TrimSpace(item)})
			into = nil
		case len(all) == 0:
		case item == "tags:":
			into = &all[len(all)-1].Tags
		case item == "fields:":
			into = &all[len(all)-1].Fields
		case into != nil && indent > 0:
			for name := range strings.SplitSeq(item, ",") {
				if name = strings.TrimSpace(name); regexp.MustCompile(`^[a-z_]+$`).MatchString(name) {
					*into = append(*into, name)
				}
			}
		case indent == 0:
			into = nil
		}
	}
	return all
}

// undocumented names the first name that is not in an input's README.
func undocumented(documented map[string]Names, wanted Names) string {
	if wanted.Measurement == "vfsprobe" {
		return "" // no input's, but the program's own
	}
	have, found := documented[wanted.Measurement]
	if !found {
		return wanted.Measurement
	}
	for _, field := range wanted.Fields {
		if !slices.Contains(have.Fields, field) {
			return wanted.Measurement + "." + field
		}
	}
	for _, tag := range wanted.Tags {
		if !slices.Contains(have.Tags, tag) {
			return wanted.Measurement + "." + tag
		}
	}
	return ""
}

// What no fault of the tests makes an input report for certain.
var unseen = []string{
	"nfslock_server tag port", "nfslock_server tag proto", // only of servers at unusual ports, or asked over UDP
	"nfslock_server field nsm_errno", "nfslock_host field rpcbind_errno", // no recorded scenario breaks these links
	"dentrycache_source tag container", "dentrycache_cgroup tag container", // no container runs
	"dentrycache_dir field watches", // comes late: all processes are searched, slowly
}

// judgeNames compares what the queries ask for with what the inputs have reported.
func judgeNames(t *testing.T, file string) {
	content, err := os.ReadFile(file)
	require.NoError(t, err)
	reported := make(map[string]bool)
	for line := range strings.Lines(string(content)) {
		point, err := influx.Parse(strings.TrimSpace(line))
		if err != nil {
			continue // the line under way
		}
		for tag := range point.Tags {
			reported[point.Name+" tag "+tag] = true
		}
		for field := range point.Fields {
			reported[point.Name+" field "+field] = true
		}
	}
	require.NotEmpty(t, reported)
	unseen := unseen
	if !slabPerCgroup() {
		unseen = append(slices.Clone(unseen), "dentrycache_cgroup field slab_reclaimable_own_bytes")
	}
	for _, name := range unseen {
		reported[name] = true
	}
	asked := func(n Names) {
		for _, field := range n.Fields {
			assert.True(t, reported[n.Measurement+" field "+field], "no input has reported the field %s of %s", field, n.Measurement)
		}
		for _, tag := range n.Tags {
			assert.True(t, reported[n.Measurement+" tag "+tag], "no input has reported the tag %s of %s", tag, n.Measurement)
		}
	}
	for _, d := range All() {
		for _, p := range d.Panels {
			asked(p.Query.Names())
		}
	}
	for measurement, info := range Infos() {
		asked(Names{Measurement: measurement, Fields: append(slices.Clone(info.Labels), info.Carrier)})
	}
}

func TestNames_EveryInfoIsSupplied(t *testing.T) {
	for _, d := range All() {
		for _, p := range d.Panels {
			for _, text := range p.Query.Text {
				assert.Contains(t, Infos()[p.Query.From].Labels, text, "a label of %s_info, which %q needs", p.Query.From, p.Title)
			}
		}
	}
}

// What Prometheus gets is read from the text of queries and rules, so each name
// found there must be one that the inputs' README files list.
func TestNames_WhatPrometheusGetsIsDocumented(t *testing.T) {
	documented := known(t)
	used := make(map[string]bool)
	for measurement, fields := range shown() {
		for _, field := range fields {
			if carrier, isInfo := strings.CutPrefix(field, "info_"); isInfo {
				assert.Equal(t, Infos()[measurement].Carrier, carrier, "of %s", measurement)
				used[measurement] = true
				field = carrier
			}
			assert.Empty(t, undocumented(documented, Names{Measurement: measurement, Fields: []string{field}}))
		}
	}
	for measurement := range Infos() {
		assert.True(t, used[measurement], "nothing shows %s_info", measurement)
	}
	for measurement, fields := range rare {
		assert.Subset(t, shown()[measurement], fields)
	}
}

// A field that is rare is not there for rates and counts, nor as a condition.
func TestNames_RareFieldsAreAskedForByTheirValue(t *testing.T) {
	rules := string(alerts.Prometheus())
	for measurement, fields := range rare {
		for _, field := range fields {
			assert.NotContains(t, rules, measurement+"_"+field)
		}
	}
	for _, d := range All() {
		for _, p := range d.Panels {
			q := p.Query
			if q.When != nil {
				assert.NotContains(t, rare[q.From], q.When.Field, "of %q", p.Title)
			}
			if q.Rate || q.Count != nil {
				assert.NotContains(t, rare[q.From], q.Fields[0], "of %q", p.Title)
			}
		}
	}
}
