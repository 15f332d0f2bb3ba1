// Command flux runs scripts in Flux, each a string of JSON on a line, and prints for each an
// [answer]. It has the last engine that is written in Go alone, Flux 0.50 of 2019: that of
// InfluxDB 2 takes a Rust compiler. The tests of the dashboards use it.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/influxdata/flux"
	_ "github.com/influxdata/flux/builtin"
	"github.com/influxdata/flux/csv"
	"github.com/influxdata/flux/lang"
	"github.com/influxdata/flux/memory"
)

// An answer is a line of JSON: the tables that came out, as annotated CSV, or an error.
type answer struct{ CSV, Error string }

func main() {
	if err := run(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "flux:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	scripts, answers := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var script string
		if err := scripts.Decode(&script); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var tables bytes.Buffer
		said := answer{}
		if err := execute(script, &tables); err != nil {
			said.Error = err.Error()
		}
		said.CSV = tables.String()
		if err := answers.Encode(said); err != nil {
			return err
		}
	}
}

func execute(script string, out io.Writer) error {
	program, err := lang.Compile(script, time.Now())
	if err != nil {
		return err
	}
	query, err := program.Start(flux.NewDefaultDependencies().Inject(context.Background()), &memory.Allocator{})
	if err != nil {
		return err
	}
	defer query.Done()
	results := flux.NewResultIteratorFromQuery(query)
	defer results.Release()
	if _, err := csv.NewMultiResultEncoder(csv.DefaultEncoderConfig()).Encode(out, results); err != nil {
		return err
	}
	return results.Err()
}
