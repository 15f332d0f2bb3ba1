package collect

import (
	"fmt"
	"slices"

	"github.com/influxdata/telegraf"

	"github.com/vfsprobe/vfsprobe/internal/schema"
)

// check reports what a metric has that is not described. All may lack tags and
// fields.
func check(all []schema.Measurement, metric telegraf.Metric) error {
	i := slices.IndexFunc(all, func(m schema.Measurement) bool { return m.Name == metric.Name() })
	if i < 0 {
		return fmt.Errorf("measurement %s is not described", metric.Name())
	}
	m := &all[i]
	for _, tag := range metric.TagList() {
		if !slices.ContainsFunc(m.Tags, func(t schema.Tag) bool { return t.Name == tag.Key }) {
			return fmt.Errorf("%s: tag %s is not described", m.Name, tag.Key)
		}
	}
	for _, field := range metric.FieldList() {
		i := slices.IndexFunc(m.Fields, func(f schema.Fields) bool { return slices.Contains(f.Names, field.Key) })
		if i < 0 {
			return fmt.Errorf("%s: field %s is not described", m.Name, field.Key)
		}
		if want, got := m.Fields[i].Kind, kindOf(field.Value); got != want {
			return fmt.Errorf("%s: field %s is described as %s, and is %s (%v)", m.Name, field.Key, want, got, field.Value)
		}
	}
	return nil
}

func kindOf(value any) schema.Kind {
	switch value.(type) {
	case int64:
		return schema.Integer
	case float64:
		return schema.Float
	case string:
		return schema.String
	case bool:
		return schema.Boolean
	}
	return schema.Kind(fmt.Sprintf("%T", value))
}
