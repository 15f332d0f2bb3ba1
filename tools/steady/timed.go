package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// helpers is what the import paths of packages contain that are followed.
const helpers = "/internal/testing/"

// declared is what is declared on the top level of a package under one name: methods
// under theirs, whatever their types, since types are not looked at.
type declared struct {
	timed bool
	named []name
}

// name is what a declaration names: of another package, or of one that is not known.
type name struct{ path, name string }

// sources is all that is declared in the packages that were read, by their import paths.
type sources map[string]map[string]*declared

// timedTests returns the tests of a package that have a time in them, in alphabetical
// order.
func timedTests(tested tested) ([]string, error) {
	all := sources{}
	files := slices.Concat(tested.TestGoFiles, tested.XTestGoFiles)
	if strings.Contains(tested.ImportPath+"/", helpers) {
		files = append(files, tested.GoFiles...)
	}
	if err := all.read(tested.ImportPath, tested.Dir, files); err != nil {
		return nil, err
	}
	var tests []string
	for test := range all[tested.ImportPath] {
		if strings.HasPrefix(test, "Test") && test != "TestMain" && all.timed(name{tested.ImportPath, test}, map[name]bool{}) {
			tests = append(tests, test)
		}
	}
	slices.Sort(tests)
	return tests, nil
}

// timed reports whether a declaration, or what it names, has a time in it.
func (s sources) timed(what name, seen map[name]bool) bool {
	declaration := s[what.path][what.name]
	if declaration == nil || seen[what] {
		return false
	}
	seen[what] = true
	return declaration.timed || slices.ContainsFunc(declaration.named, func(next name) bool { return s.timed(next, seen) })
}

// read notes what the files of a package declare, and what is declared in the helpers
// that they import.
func (s sources) read(path, dir string, files []string) error {
	all := map[string]*declared{}
	s[path] = all
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, parser.SkipObjectResolution)
		if err != nil {
			return fmt.Errorf("parse a test: %w", err)
		}
		imports := map[string]string{}
		for _, spec := range parsed.Imports {
			imported := strings.Trim(spec.Path.Value, `"`)
			local := imported[strings.LastIndex(imported, "/")+1:]
			if spec.Name != nil {
				local = spec.Name.Name
			}
			imports[local] = imported
			if strings.Contains(imported, helpers) && s[imported] == nil {
				if err := s.readImported(imported); err != nil {
					return err
				}
			}
		}
		for _, declaration := range parsed.Decls {
			switch declaration := declaration.(type) {
			case *ast.FuncDecl:
				note(all, declaration.Name.Name, declaration, path, imports)
			case *ast.GenDecl:
				for _, spec := range declaration.Specs {
					if values, ok := spec.(*ast.ValueSpec); ok {
						for _, name := range values.Names {
							note(all, name.Name, values, path, imports)
						}
					}
				}
			}
		}
	}
	return nil
}

func (s sources) readImported(path string) error {
	packages, err := listPackages([]string{path})
	if err != nil {
		return err
	}
	return s.read(path, packages[0].Dir, packages[0].GoFiles)
}

// note adds what a node of the syntax says to a declaration.
func note(all map[string]*declared, as string, node ast.Node, path string, imports map[string]string) {
	into := all[as]
	if into == nil {
		into = &declared{}
		all[as] = into
	}
	ast.Inspect(node, func(node ast.Node) bool {
		switch node := node.(type) {
		case *ast.SelectorExpr:
			if of, ok := node.X.(*ast.Ident); ok && imports[of.Name] != "" {
				into.timed = into.timed || tells(imports[of.Name], node.Sel.Name)
				into.named = append(into.named, name{imports[of.Name], node.Sel.Name})
				return false
			}
			into.timed = into.timed || tells("", node.Sel.Name)
			for _, imported := range imports { // a method, of whatever type
				into.named = append(into.named, name{imported, node.Sel.Name})
			}
		case *ast.Ident:
			into.named = append(into.named, name{path, node.Name})
		case *ast.BasicLit:
			if text, err := strconv.Unquote(node.Value); err == nil && node.Kind == token.STRING {
				into.timed = into.timed || duration.MatchString(text)
			}
		}
		return true
	})
}

// duration is one of a flag or in a configuration.
var duration = regexp.MustCompile(`(^|["'= ])[0-9.]+(ms|s|m)(["' \n]|$)`)

// tells reports whether a name of a package, or of a value if path is empty, waits,
// measures or makes a duration.
func tells(path, name string) bool {
	switch path {
	case "time":
		return slices.Contains([]string{"Sleep", "After", "AfterFunc", "NewTimer", "NewTicker", "Tick", "Since", "Until",
			"Microsecond", "Millisecond", "Second", "Minute", "Hour"}, name)
	case "context":
		return name == "WithTimeout" || name == "WithDeadline"
	}
	return slices.Contains([]string{"Eventually", "EventuallyWithT", "Never", "WithinDuration"}, name)
}
