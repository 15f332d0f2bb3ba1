package document

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const root = "../../.."

// source is what the project's files declare.
type source struct {
	files   map[string]map[string]bool // names in each Go file
	names   map[string]bool            // of all of them
	folders map[string]bool
}

func readSource(t *testing.T) *source {
	s := &source{files: make(map[string]map[string]bool), names: make(map[string]bool), folders: make(map[string]bool)}
	for _, top := range []string{"cmd", "internal", "plugins", "tools", "packaging", "dashboards", "docs"} {
		require.NoError(t, filepath.WalkDir(filepath.Join(root, top), func(name string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			relative, _ := filepath.Rel(root, name)
			if d.IsDir() {
				s.folders[relative] = true
			} else if s.files[relative] = nil; strings.HasSuffix(name, ".go") {
				s.files[relative] = declared(t, name)
				for name := range s.files[relative] {
					s.names[name] = true
				}
			}
			return nil
		}))
	}
	return s
}

// declared lists functions, types, values, fields and methods, those of types as T.M, too.
func declared(t *testing.T, file string) map[string]bool {
	names := make(map[string]bool)
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	require.NoError(t, err)
	names[f.Name.Name] = true
	ast.Inspect(f, func(n ast.Node) bool {
		var idents []*ast.Ident
		owner := ""
		switch n := n.(type) {
		case *ast.FuncDecl:
			idents = []*ast.Ident{n.Name}
			if n.Recv != nil {
				ast.Inspect(n.Recv.List[0].Type, func(n ast.Node) bool {
					if id, ok := n.(*ast.Ident); ok && owner == "" {
						owner = id.Name + "."
					}
					return true
				})
			}
		case *ast.TypeSpec:
			idents = []*ast.Ident{n.Name}
		case *ast.ValueSpec:
			idents = n.Names
		case *ast.Field:
			idents = n.Names
		}
		for _, id := range idents {
			names[id.Name], names[owner+id.Name] = true, true
		}
		return true
	})
	return names
}

// has reports whether the word names something of the project: a name, a file or a folder, whole
// or by its end.
func (s *source) has(word string) bool {
	word = strings.TrimSuffix(strings.TrimSuffix(word, "/*"), "/")
	if s.names[word] || s.folders[word] {
		return true
	}
	if files, _ := filepath.Glob(filepath.Join(root, word)); len(files) > 0 {
		return true
	}
	if _, name, found := strings.Cut(word, "."); found && s.names[name] && s.names[strings.Split(word, ".")[0]] {
		return true // PACKAGE.NAME
	}
	ends := func(name string) bool { return name == word || strings.HasSuffix(name, "/"+word) }
	for name := range s.files {
		if ends(name) || ends(path.Dir(name)) {
			return true
		}
	}
	return false
}

// foreign are words of the tour that name other things: options, files of the kernel, columns.
var foreign = []string{"fs", "unchecked", "mountstats", "stat", "comm", "status", "wchan", "cgroup", "uid_map", "statfs"}

// What a newcomer is told to look for is there: each function, file and folder that the way in
// names, in the file for which it is named.
func TestWayIn_NamesWhatThereIs(t *testing.T) {
	s := readSource(t)
	word := regexp.MustCompile("`([A-Za-z_][A-Za-z0-9_./*]*)`")
	place := regexp.MustCompile("`([A-Za-z_][A-Za-z0-9_.]*)`(?:,? in | \\()`([a-z0-9_]+\\.go)`")
	input := regexp.MustCompile("^[a-z]+ `(plugins/inputs/[a-z]+)`")
	for _, document := range []string{"TOUR.md", "ARCHITECTURE.md"} {
		content, err := os.ReadFile(filepath.Join(root, "docs", document))
		require.NoError(t, err)
		for section := range strings.SplitSeq(string(content), "\n## ") {
			text := strings.Join(strings.Fields(section), " ")
			for _, m := range word.FindAllStringSubmatch(text, -1) {
				assert.True(t, s.has(m[1]) || slices.Contains(foreign, m[1]), "%s: there is no %s", document, m[1])
			}
			of := "" // the folder of the input that the section is about
			if m := input.FindStringSubmatch(text); m != nil {
				of = m[1] + "/"
			}
			for _, m := range place.FindAllStringSubmatch(text, -1) {
				found := false
				for file, names := range s.files {
					found = found || path.Base(file) == m[2] && names[m[1]] && strings.HasPrefix(file, of)
				}
				assert.True(t, found, "%s: %s is not in %s", document, m[1], m[2])
			}
		}
	}
}

// The table of packages has all of them.
func TestArchitecture_ListsEachPackage(t *testing.T) {
	content, err := os.ReadFile(filepath.Join(root, "docs/ARCHITECTURE.md"))
	require.NoError(t, err)
	_, text, _ := strings.Cut(string(content), "\n## Packages")
	text, _, _ = strings.Cut(text, "\n## What is generated")
	for _, folder := range []string{"internal", "internal/testing", "plugins/inputs"} {
		entries, err := os.ReadDir(filepath.Join(root, folder))
		require.NoError(t, err)
		for _, e := range entries {
			name := folder + "/" + e.Name()
			if files, _ := filepath.Glob(filepath.Join(root, name, "*.go")); len(files) > 0 {
				assert.True(t, strings.Contains(text, "`"+name+"`") || strings.Contains(text, "`"+e.Name()+"`") || strings.Contains(text, folder+"/*`") && folder == "plugins/inputs",
					"the table of packages lacks %s", name)
			}
		}
	}
}
