package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestClassify(t *testing.T) {
	for text, want := range map[string]string{
		"MIT License\n\nPermission is hereby\ngranted, free of charge, to any person": "MIT",
		"Apache License\n  Version 2.0, January 2004":                                 "Apache-2.0",
		"Redistribution and use in source and binary forms, ... Neither the name of":  "BSD-3-Clause",
		"Redistribution and use in source and binary forms, with or without":          "BSD-2-Clause",
		"Mozilla Public License Version 2.0 ... the GNU General Public License":       "MPL-2.0",
	} {
		got, err := classify([]byte(text))
		assert.NoError(t, err, text)
		assert.Equal(t, want, got)
	}
	for _, text := range []string{
		"", "All rights reserved.", "GNU GENERAL PUBLIC LICENSE\nVersion 3",
		"Permission is hereby granted, free of charge, subject to the \"Commons Clause\"",
	} {
		_, err := classify([]byte(text))
		assert.Error(t, err, text)
	}
}

func TestRun_OfThisModulesDependencies(t *testing.T) {
	assert.NoError(t, run([]string{"github.com/vfsprobe/vfsprobe/..."}))
}
