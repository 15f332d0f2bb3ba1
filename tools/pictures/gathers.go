package main

import (
	"encoding/csv"
	"fmt"
	"image/color"
	"io"
	"math"
	"os"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/plotutil"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// gathers draws the CPU time of gathers over the number of mounts, of each program
// its rounds and a line through their medians, from the raw values of
// tools/bench.
func gathers(data, png string) error {
	file, err := os.Open(data)
	if err != nil {
		return err
	}
	defer file.Close()
	programs, rounds, err := readGathers(file)
	if err != nil {
		return fmt.Errorf("reading %s: %w", data, err)
	}
	out := plot.New()
	out.Title.Text = "CPU time of a gather while all mounts are healthy"
	out.Title.Padding = vg.Points(8)
	out.X.Label.Text, out.Y.Label.Text = "mounts", "ms, user and system, of all processes"
	out.X.Scale, out.Y.Scale = plot.LogScale{}, plot.LogScale{}
	out.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	out.Legend.Top, out.Legend.Left = true, true
	out.Legend.Padding = vg.Points(3)
	out.Add(plotter.NewGrid())
	var sizes []float64
	for i, program := range programs {
		dots, line, err := paths(rounds[program])
		if err != nil {
			return fmt.Errorf("%s: %w", program, err)
		}
		line.Color, line.Width = plotutil.Color(i), vg.Points(1.5)
		dots.Color, dots.Radius, dots.Shape = plotutil.Color(i), vg.Points(2), draw.CircleGlyph{}
		out.Add(line, dots)
		out.Legend.Add(program, line)
		for _, point := range line.XYs {
			sizes = append(sizes, point.X)
		}
	}
	slices.Sort(sizes)
	var ticks []plot.Tick
	for _, n := range slices.Compact(sizes) {
		ticks = append(ticks, plot.Tick{Value: n, Label: strconv.Itoa(int(n))})
	}
	out.X.Tick.Marker = plot.ConstantTicks(ticks)
	// Whole decades, since only these have labels.
	out.Y.Min = math.Pow(10, math.Floor(math.Log10(out.Y.Min)))
	out.Y.Max = math.Pow(10, math.Ceil(math.Log10(out.Y.Max)))

	canvas := vgimg.NewWith(vgimg.UseWH(vg.Points(640), vg.Points(420)), vgimg.UseDPI(96), vgimg.UseBackgroundColor(color.White))
	out.Draw(draw.Crop(draw.New(canvas), vg.Points(8), vg.Points(-16), vg.Points(8), vg.Points(-8)))
	return writePNG(canvas, png)
}

// readGathers returns the programs in the order of the file, and by program and
// number of mounts the milliseconds of each round, without those in which mounts
// hung.
func readGathers(file io.Reader) (programs []string, rounds map[string]map[float64][]float64, err error) {
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil {
		return nil, nil, err
	}
	if len(rows) < 2 {
		return nil, nil, fmt.Errorf("no rows")
	}
	at := make(map[string]int)
	for i, name := range rows[0] {
		at[name] = i
	}
	for _, name := range []string{"mounts", "hanging", "program", "cpu_ms"} {
		if _, found := at[name]; !found {
			return nil, nil, fmt.Errorf("no column %s", name)
		}
	}
	rounds = make(map[string]map[float64][]float64)
	for _, row := range rows[1:] {
		if row[at["hanging"]] != "0" {
			continue
		}
		n, err := strconv.ParseFloat(row[at["mounts"]], 64)
		if err != nil {
			return nil, nil, err
		}
		spent, err := strconv.ParseFloat(row[at["cpu_ms"]], 64)
		if err != nil {
			return nil, nil, err
		}
		program := row[at["program"]]
		if rounds[program] == nil {
			programs = append(programs, program)
			rounds[program] = make(map[float64][]float64)
		}
		rounds[program][n] = append(rounds[program][n], spent)
	}
	return programs, rounds, nil
}

func paths(rounds map[float64][]float64) (*plotter.Scatter, *plotter.Line, error) {
	var all, medians plotter.XYs
	for n, values := range rounds {
		slices.Sort(values)
		for _, value := range values {
			all = append(all, plotter.XY{X: n, Y: value})
		}
		middle := len(values) / 2
		medians = append(medians, plotter.XY{X: n, Y: (values[(len(values)-1)/2] + values[middle]) / 2})
	}
	slices.SortFunc(medians, func(a, b plotter.XY) int { return int(a.X - b.X) })
	dots, err := plotter.NewScatter(all)
	if err != nil {
		return nil, nil, err
	}
	line, err := plotter.NewLine(medians)
	return dots, line, err
}
