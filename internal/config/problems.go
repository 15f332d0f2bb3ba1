package config

import (
	"errors"
	"fmt"
)

// Problems are all errors in a configuration: users are told of each at once.
type Problems []error

// Add adds a problem.
func (p *Problems) Add(format string, arguments ...any) {
	*p = append(*p, fmt.Errorf(format, arguments...))
}

// AddError adds an error, unless it is nil.
func (p *Problems) AddError(err error) {
	if err != nil {
		*p = append(*p, err)
	}
}

// Err returns all of them as one error, or nil.
func (p Problems) Err() error { return errors.Join(p...) }
