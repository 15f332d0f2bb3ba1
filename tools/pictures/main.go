// Command pictures draws what the dashboards' queries have returned from a real
// InfluxDB, as a PNG. It is no Grafana, which could not be had: colors and forms
// are like its, the data are the same. See "make pictures". With the word gathers in
// front it draws what gathers cost: see "make gathers".
package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"image/color"
	"io"
	"os"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// A Picture is a panel and what its query returned.
type Picture struct {
	Title  string
	Form   string // timeline, lines or table
	Unit   string
	Series []Series   // of the first two
	Header []string   // of a table
	Rows   [][]string // "!" in front: broken
}

// A Series has its values by seconds.
type Series struct {
	Name   string
	Points [][2]float64
}

// Names and colors of result codes, as in the dashboards.
var states = []struct {
	name  string
	color color.Color
}{
	{"ok", rgb(0x73bf69)}, {"slow", rgb(0xfade2a)}, {"denied", rgb(0xb877d9)}, {"missing", rgb(0xff9830)}, {"stale", rgb(0xfa6400)},
	{"error", rgb(0xf2495c)}, {"timeout", rgb(0xc4162a)}, {"stuck", rgb(0x5c0011)}, {"unchecked", rgb(0x8e8e8e)},
}

func rgb(v uint32) color.Color {
	return color.RGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 255}
}

func main() {
	draw := run
	switch os.Args[1] {
	case "gathers":
		draw, os.Args = gathers, os.Args[1:]
	case "terminal":
		draw, os.Args = terminal, os.Args[1:]
	}
	if err := draw(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "pictures:", err)
		os.Exit(1)
	}
}

func run(data, png string) error {
	content, err := os.ReadFile(data)
	if err != nil {
		return err
	}
	var pictures []Picture
	if err := json.Unmarshal(content, &pictures); err != nil {
		return fmt.Errorf("reading %s: %w", data, err)
	}
	const columns = 2
	rows := (len(pictures) + columns - 1) / columns
	canvas := vgimg.NewWith(vgimg.UseWH(vg.Points(900), vg.Points(float64(rows)*250)), vgimg.UseDPI(96), vgimg.UseBackgroundColor(color.White))
	tiles := draw.Tiles{Rows: rows, Cols: columns, PadX: vg.Points(16), PadY: vg.Points(16),
		PadTop: vg.Points(8), PadBottom: vg.Points(8), PadLeft: vg.Points(8), PadRight: vg.Points(12)}
	all := draw.New(canvas)
	for i, p := range pictures {
		paint, err := p.plot()
		if err != nil {
			return fmt.Errorf("drawing %s: %w", p.Title, err)
		}
		paint.Draw(tiles.At(all, i%columns, i/columns))
	}
	return writePNG(canvas, png)
}

func writePNG(canvas *vgimg.Canvas, png string) error {
	file, err := os.Create(png)
	if err != nil {
		return err
	}
	var w io.WriterTo = vgimg.PngCanvas{Canvas: canvas}
	if _, err := w.WriteTo(file); err != nil {
		return err
	}
	return file.Close()
}

func (p *Picture) plot() (*plot.Plot, error) {
	out := plot.New()
	out.Title.Text = p.Title
	out.Title.TextStyle.Font.Size = vg.Points(12)
	out.Title.Padding = vg.Points(6)
	out.X.Tick.Label.Font.Size = vg.Points(8)
	out.Y.Tick.Label.Font.Size = vg.Points(8)
	switch p.Form {
	case "timeline":
		p.timeline(out)
	case "table":
		out.HideAxes()
		out.Add(table{p})
	case "lines":
		return out, p.lines(out)
	default:
		return nil, fmt.Errorf("unknown form %q", p.Form)
	}
	return out, nil
}

func (p *Picture) lines(out *plot.Plot) error {
	out.Add(plotter.NewGrid())
	out.X.Label.Text, out.Y.Label.Text = "seconds", p.Unit
	out.X.Label.TextStyle.Font.Size, out.Y.Label.TextStyle.Font.Size = vg.Points(8), vg.Points(8)
	out.Legend.Top, out.Legend.Left = true, true
	out.Legend.TextStyle.Font.Size = vg.Points(8)
	out.Y.Min = 0
	for i, s := range p.Series {
		points := make(plotter.XYs, len(s.Points))
		for j, point := range s.Points {
			points[j] = plotter.XY{X: point[0], Y: point[1]}
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color = plotutil.Color(i), plotutil.Color(i)
		line.Width, dots.Radius = vg.Points(1.5), vg.Points(1.5)
		out.Add(line, dots)
		out.Legend.Add(s.Name, line)
		for _, point := range points {
			out.Y.Max = max(out.Y.Max, 1.25*point.Y) // the legend is on top
		}
	}
	return nil
}

// timeline draws each series as a row of bars.
func (p *Picture) timeline(out *plot.Plot) {
	slices.SortFunc(p.Series, func(a, b Series) int { return cmp.Compare(b.Name, a.Name) })
	var names []plot.Tick
	seen := make(map[int]bool)
	for i, s := range p.Series {
		names = append(names, plot.Tick{Value: float64(i), Label: s.Name})
		for j, point := range s.Points {
			end := point[0] + 1
			if j+1 < len(s.Points) {
				end = s.Points[j+1][0]
			}
			out.X.Max = max(out.X.Max, end)
			state := int(point[1])
			seen[state] = true
			bar, err := plotter.NewPolygon(plotter.XYs{{X: point[0], Y: float64(i) - 0.42}, {X: end, Y: float64(i) - 0.42}, {X: end, Y: float64(i) + 0.42}, {X: point[0], Y: float64(i) + 0.42}})
			if err != nil {
				continue // a point of no duration
			}
			bar.Color, bar.LineStyle.Width = states[state].color, 0
			out.Add(bar)
		}
	}
	out.X.Label.Text = "seconds"
	out.X.Label.TextStyle.Font.Size = vg.Points(8)
	out.Y.Tick.Marker = plot.ConstantTicks(names)
	out.Y.Min, out.Y.Max = -0.6, float64(len(p.Series))+0.9
	out.Legend.Top, out.Legend.Left = true, true
	out.Legend.TextStyle.Font.Size = vg.Points(8)
	var legend []string
	for state := range states {
		if seen[state] {
			legend = append(legend, states[state].name)
		}
	}
	out.Add(swatches(legend))
}

// swatches are a legend in one line.
type swatches []string

func (s swatches) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := c.Min.X+vg.Points(4), c.Max.Y-vg.Points(12)
	for _, name := range s {
		i := slices.IndexFunc(states, func(state struct {
			name  string
			color color.Color
		}) bool {
			return state.name == name
		})
		box := []vg.Point{{X: x, Y: y}, {X: x + 9, Y: y}, {X: x + 9, Y: y + 9}, {X: x, Y: y + 9}}
		c.FillPolygon(states[i].color, box)
		style := p.Legend.TextStyle
		c.FillText(style, vg.Point{X: x + 12, Y: y + 1}, name)
		x += 12 + style.Width(name) + 12
	}
}

// table draws cells, with a red ground those that are broken.
type table struct{ *Picture }

func (t table) Plot(c draw.Canvas, p *plot.Plot) {
	rows := append([][]string{t.Header}, t.Rows...)
	width := (c.Max.X - c.Min.X) / vg.Length(len(t.Header))
	height := min((c.Max.Y-c.Min.Y)/vg.Length(len(rows)), vg.Points(22))
	style := p.X.Tick.Label
	style.Font.Size = vg.Points(7)
	style.XAlign, style.YAlign = draw.XLeft, draw.YBottom
	for i, row := range rows {
		for j, text := range row {
			x, y := c.Min.X+width*vg.Length(j), c.Max.Y-height*vg.Length(i+1)
			ground := rgb(0xf4f5f5)
			value, broken := strings.CutPrefix(text, "!")
			switch {
			case i == 0:
				ground = rgb(0xdcdfe3)
			case broken:
				ground = rgb(0xf2495c)
			case j > 0 && text != "":
				ground = rgb(0xc8e6c4)
			}
			c.FillPolygon(ground, []vg.Point{{X: x, Y: y}, {X: x + width - 2, Y: y}, {X: x + width - 2, Y: y + height - 2}, {X: x, Y: y + height - 2}})
			c.FillText(style, vg.Point{X: x + 3, Y: y + 5}, value)
		}
	}
}
