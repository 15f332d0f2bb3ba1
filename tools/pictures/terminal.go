package main

import (
	"bytes"
	"fmt"
	"image/color"
	"io"
	"os"
	"regexp"
	"strings"
	"unicode/utf8"

	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgimg"
)

// A textRun is text of one color.
type textRun struct {
	text  string
	bold  bool
	color color.Color
}

// Colors of a terminal: by number of SGR, ECMA-48.
var (
	background = rgb(0x1d1f21)
	foreground = rgb(0xc5c8c6)
	sgrColors  = map[string]color.Color{"31": rgb(0xf2495c), "32": rgb(0x73bf69), "33": rgb(0xfade2a), "35": rgb(0xb877d9), "36": rgb(0x5794f2)}
)

var escape = regexp.MustCompile(`\x1b\[([0-9;]*)([A-Za-z])`)

// terminal draws what a program has written to a terminal of 80 columns.
func terminal(written, png string) error {
	content, err := os.ReadFile(written)
	if err != nil {
		return err
	}
	lines, err := screen(content)
	if err != nil {
		return fmt.Errorf("reading %s: %w", written, err)
	}
	const columns, size, leading, margin = 80, 10, 14, 12
	regular := font.Font{Typeface: "Liberation", Variant: "Mono", Size: size}
	bold := regular
	bold.Weight = 3 // x/image/font.WeightBold
	style := text.Style{Font: regular, Handler: text.Plain{Fonts: font.DefaultCache}}
	advance := style.Width("m")
	width, height := columns*advance+2*margin, vg.Length(len(lines))*leading+2*margin
	canvas := vgimg.NewWith(vgimg.UseWH(width, height), vgimg.UseDPI(144), vgimg.UseBackgroundColor(background))
	c := draw.New(canvas)
	for i, line := range lines {
		x := vg.Length(margin)
		for _, run := range line {
			style.Color, style.Font = run.color, regular
			if run.bold {
				style.Font = bold
			}
			c.FillText(style, vg.Point{X: x, Y: height - margin - leading*vg.Length(i) - size}, run.text)
			x += advance * vg.Length(utf8.RuneCountInString(run.text))
		}
	}
	return writePNG(canvas, png)
}

// screen returns the lines that were left on the terminal. Of the escape sequences it
// knows those that vfsprobe check writes: colors, and a line that is cleared.
func screen(content []byte) (lines [][]textRun, err error) {
	for line := range bytes.Lines(content) {
		shown := strings.TrimRight(string(line), "\r\n")
		if i := strings.LastIndex(shown, "\r\x1b[K"); i >= 0 {
			shown = shown[i+len("\r\x1b[K"):]
		}
		runs := []textRun{}
		at := textRun{color: foreground}
		add := func(text string) {
			if text != "" {
				runs = append(runs, textRun{text, at.bold, at.color})
			}
		}
		for {
			found := escape.FindStringSubmatchIndex(shown)
			if found == nil {
				break
			}
			add(shown[:found[0]])
			if verb := shown[found[4]:found[5]]; verb != "m" {
				return nil, fmt.Errorf("the escape sequence %q is not known", shown[found[0]:found[1]])
			}
			for _, number := range strings.Split(shown[found[2]:found[3]], ";") {
				switch number {
				case "", "0":
					at = textRun{color: foreground}
				case "1":
					at.bold = true
				default:
					if at.color = sgrColors[number]; at.color == nil {
						return nil, fmt.Errorf("no color has the number %s", number)
					}
				}
			}
			shown = shown[found[1]:]
		}
		add(shown)
		lines = append(lines, runs)
	}
	if len(lines) == 0 {
		return nil, io.ErrUnexpectedEOF
	}
	return lines, nil
}
