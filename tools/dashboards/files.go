package dashboards

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Files returns the dashboards' JSON and Telegraf's part, by path below the
// folder dashboards.
func Files() (map[string][]byte, error) {
	files := map[string][]byte{"prometheus/telegraf-prometheus.conf": []byte(Processors())}
	for _, d := range All() {
		for _, s := range databases {
			var b bytes.Buffer
			encoder := json.NewEncoder(&b)
			encoder.SetEscapeHTML(false)
			encoder.SetIndent("", " ")
			if err := encoder.Encode(s.board(&d)); err != nil {
				return nil, fmt.Errorf("making the dashboard %s: %w", d.Name, err)
			}
			files[fmt.Sprintf("%s/%s.json", s.name, d.Name)] = b.Bytes()
		}
	}
	return files, nil
}

// board lays a dashboard's panels out, from the left to the right.
func (s store) board(d *Dashboard) board {
	b := board{
		UID:           "vfsprobe-" + d.Name + "-" + s.name,
		Title:         "vfsprobe: " + d.Title + " (" + s.title + ")",
		Description:   d.Says,
		Tags:          []string{"vfsprobe", "vfsprobe-" + s.name},
		SchemaVersion: 39,
		Editable:      true,
		GraphTooltip:  1,
		Refresh:       "10s",
		Time:          timeRange{"now-1h", "now"},
		Links: []link{{Title: "vfsprobe", Type: "dashboards", Tags: []string{"vfsprobe-" + s.name},
			KeepTime: true, IncludeVars: true, Icon: "dashboard"}},
	}
	b.Templating.List = []variable{{Name: "datasource", Label: "Data source", Type: "datasource", Query: s.source}}
	if d.OneHost {
		b.Templating.List = append(b.Templating.List, s.hosts())
	}
	x, y, height := 0, 0, 0
	for i, p := range d.Panels {
		if x+p.Width > 24 {
			x, y, height = 0, y+height, 0
		}
		recent := ""
		if p.kind() != overTime {
			recent = "2m"
		}
		if p.Recent != "" {
			recent = p.Recent
		}
		b.Panels = append(b.Panels, panel{
			ID: i + 1, Type: string(p.Form), Title: p.Title, Description: p.Says, Datasource: s.datasource(),
			GridPos: place{x, y, p.Width, p.Height}, TimeFrom: recent, Targets: s.targets(&p),
			FieldConfig: s.config(&p), Options: p.options(), Transformations: s.transformations(&p),
		})
		x += p.Width
		height = max(height, p.Height)
	}
	return b
}

// hosts is the variable that chooses them.
func (s store) hosts() variable {
	d := s.datasource()
	v := variable{Name: "host", Label: "Host", Type: "query", Datasource: &d, Multi: true, Refresh: 2, Sort: 1,
		Query: `label_values(mountstat_summary_mounts, host)`}
	switch s {
	case influxDB:
		v.Query = `SHOW TAG VALUES FROM "mountstat_summary" WITH KEY = "host"`
	case fluxDB:
		v.Query = `import "influxdata/influxdb/schema"
schema.tagValues(bucket: v.defaultBucket, tag: "host", predicate: (r) => r._measurement == "mountstat_summary")`
	}
	return v
}
