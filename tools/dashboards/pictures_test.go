//go:build !race

package dashboards

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// picture is what tools/pictures draws.
type picture struct {
	Title, Form, Unit string
	Series            []pictureSeries `json:",omitempty"`
	Header            []string        `json:",omitempty"`
	Rows              [][]string      `json:",omitempty"`
}

type pictureSeries struct {
	Name   string
	Points [][2]float64
}

func panelOf(t *testing.T, dashboard, title string) *Panel {
	for _, d := range All() {
		for i := range d.Panels {
			if d.Name == dashboard && d.Panels[i].Title == title {
				return &d.Panels[i]
			}
		}
	}
	require.FailNow(t, "no panel", "%s of %s", title, dashboard)
	return nil
}

// exportPictures writes what some panels' queries return from InfluxDB.
func (l *live) exportPictures(t *testing.T, file, root string, since time.Time) {
	replace := func(host string) *strings.Replacer {
		return strings.NewReplacer("$timeFilter", fmt.Sprintf("time >= %d", since.UnixNano()), "$__interval", "1s", "$host", host)
	}
	over := func(dashboard, title, form, unit, host string, name func(labels map[string]string) string) picture {
		panel := panelOf(t, dashboard, title)
		p := picture{Title: panel.Title, Form: form, Unit: unit}
		for _, row := range l.influx.Query(t, replace(host).Replace(influxDB.targets(panel)[0].Query)) {
			s := pictureSeries{Name: name(row.Labels)}
			for _, point := range row.Points {
				for _, value := range point.Values {
					s.Points = append(s.Points, [2]float64{point.Time.Sub(since).Seconds(), value.(float64)})
				}
			}
			if s.Name != "" {
				p.Series = append(p.Series, s)
			}
		}
		require.NotEmpty(t, p.Series, "%s", title)
		return p
	}
	short := func(path string) string { return strings.Replace(path, root, "/srv", 1) }
	matrix := func() picture {
		panel := panelOf(t, "locks", "The chain at each server")
		hosts := map[string]string{"statd": "client a", "nlm": "client b", "rpcbind": "client c", "cut": "client d"}
		chain := l.ask(t, influxDB, panel, strings.Join(slices.Sorted(maps.Keys(hosts)), "|"))
		own := l.ask(t, influxDB, panelOf(t, "locks", "The chain on the host"), strings.Join(slices.Sorted(maps.Keys(hosts)), "|"))
		p := picture{Title: "NFS locks: the chain at each server, and on the host", Form: "table", Header: []string{"host", "server", "nfs", "rpcbind", "nlm", "nsm", "own statd"}}
		cell := func(row map[string]any, link string) string {
			if errno, broken := row[link+"_errno"].(string); broken {
				return "!" + errno
			}
			if seconds, answered := row[link+"_seconds"].(float64); answered {
				return fmt.Sprintf("%.2f ms", seconds*1000)
			}
			return ""
		}
		for _, row := range chain {
			host := row["host"].(string)
			p.Rows = append(p.Rows, []string{hosts[host], row["server"].(string), cell(row, "nfs"), cell(row, "rpcbind"), cell(row, "nlm"), cell(row, "nsm"),
				cell(own.where("host", host)[0], "statd")})
		}
		slices.SortFunc(p.Rows, func(a, b []string) int { return slices.Compare(a[:2], b[:2]) })
		return p
	}
	pictures := []picture{
		over("host", "Mounts", "timeline", "", thisHost, func(labels map[string]string) string { return short(labels["path"]) }),
		over("host", "Hung for", "lines", "seconds", thisHost, func(labels map[string]string) string {
			if labels["path"] != root+"/hung" && labels["path"] != root+"/fine" {
				return ""
			}
			return short(labels["path"])
		}),
		l.table(t, "fleet", "Hosts with faults, by kind", "", "host", "missing", "stale", "error", "timeout", "stuck"),
		l.table(t, "host", "Faults and their causes", thisHost, "path", "cause", "failed_check", "errno"),
		matrix(),
	}
	pictures = append(pictures,
		over("dentries", "New negative dentries by process and directory", "lines", "per second", thisHost, func(labels map[string]string) string {
			if labels["comm"] != "flooder" {
				return ""
			}
			return labels["comm"] + " in " + short(labels["directory"])
		}))
	content, err := json.Marshal(pictures)
	require.NoError(t, err)
	content = []byte(strings.ReplaceAll(string(content), root, "/srv"))
	require.NoError(t, os.WriteFile(file, content, 0o644))
}

// table is that of a panel.
func (l *live) table(t *testing.T, dashboard, title, host string, columns ...string) picture {
	p := picture{Title: title, Form: "table", Header: columns}
	for _, row := range l.ask(t, influxDB, panelOf(t, dashboard, title), host) {
		var cells []string
		for i, column := range columns {
			text := ""
			if value, found := row[column]; found && value != 0.0 {
				text = fmt.Sprint(value)
			}
			if i > 0 && text != "" {
				text = "!" + text
			}
			cells = append(cells, text)
		}
		p.Rows = append(p.Rows, cells)
	}
	slices.SortFunc(p.Rows, slices.Compare)
	return p
}
