package berth_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/berth-run/berth"

// mayImport says which packages of ours each package may import. It is the table in ARCHITECTURE.md.
var mayImport = map[string][]string{
	"serving":                 {},
	"image":                   {},
	"identity":                {},
	"certificate":             {},
	"store":                   {"serving"},
	"store/bolt":              {"serving", "store"},
	"client":                  {"engine", "serving"},
	"engine":                  {"serving"},
	"engine/node":             {"engine", "image", "serving"},
	"build":                   {"image"},
	"autoscaler":              {"engine", "serving"},
	"autoscaler/simulation":   {"autoscaler"},
	"gateway/http1":           {},
	"gateway/http1/http1test": {"gateway/http1"},
	"gateway":                 {"autoscaler", "engine", "gateway/http1", "serving"},
	"reconcile":               {"autoscaler", "certificate", "engine", "gateway", "identity", "image", "serving", "store"},
	"api":                     {"autoscaler", "engine", "identity", "serving", "store"},
	"server":                  {"api", "autoscaler", "certificate", "engine", "engine/node", "gateway", "identity", "image", "reconcile", "serving", "store", "store/bolt"},
	"cli":                     {"build", "client", "engine", "image", "server", "serving"},
	"cmd/berth":               {"cli"},
	"engine/enginetest":       {"engine"},
	"store/storetest":         {"serving", "store"},
	"internal/testimage":      {"build", "image"},
}

// source is one parsed Go file of the tree.
type source struct {
	path string // relative, with slashes
	dir  string
	test bool
	file *ast.File
}

func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	files := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != "." && (strings.HasPrefix(name, ".") || name == "testdata" || name == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(files, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{path: path, dir: filepath.ToSlash(filepath.Dir(path)), test: strings.HasSuffix(path, "_test.go"), file: f})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 20 {
		t.Fatalf("found %d Go files: is the test running in the root of the tree?", len(all))
	}
	return all
}

// free lists folders whose packages are programs around the tree, not rooms of it.
func free(dir string) bool {
	return dir == "." || strings.HasPrefix(dir, "bench") || strings.HasPrefix(dir, "examples") ||
		strings.HasPrefix(dir, "internal/testimage/programs") || dir == "engine/enginetest/program" || strings.HasPrefix(dir, "e2e") ||
		dir == "test/conformance"
}

func TestPackagesImportOnlyWhatTheTableAllows(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || free(s.dir) {
			continue
		}
		allowed, known := mayImport[s.dir]
		if !known {
			t.Errorf("%s: package %s is not in the import table", s.path, s.dir)
			continue
		}
		for _, i := range s.file.Imports {
			path, _ := strconv.Unquote(i.Path.Value)
			ours, ok := strings.CutPrefix(path, module+"/")
			if ok && !slices.Contains(allowed, ours) {
				t.Errorf("%s imports %s, which the table does not allow", s.path, ours)
			}
		}
	}
}

func TestImportTableIsTheOneInArchitecture(t *testing.T) {
	text := read(t, "ARCHITECTURE.md")
	row := regexp.MustCompile("(?m)^\\| `([a-z0-9/]+)` \\| (.*) \\|$")
	documented := map[string][]string{}
	name := regexp.MustCompile("`([a-z0-9/]+)`")
	for _, m := range row.FindAllStringSubmatch(text, -1) {
		documented[m[1]] = []string{}
		for _, n := range name.FindAllStringSubmatch(m[2], -1) {
			documented[m[1]] = append(documented[m[1]], n[1])
		}
	}
	for dir, allowed := range mayImport {
		if got, ok := documented[dir]; !ok || !slices.Equal(got, allowed) {
			t.Errorf("ARCHITECTURE.md says that %s may import %v (found: %v), the table here says %v", dir, got, ok, allowed)
		}
	}
}

func TestImportsAreNotRenamed(t *testing.T) {
	for _, s := range sources(t) {
		for _, i := range s.file.Imports {
			if i.Name != nil && i.Name.Name != "_" {
				t.Errorf("%s: import %s is renamed to %s", s.path, i.Path.Value, i.Name.Name)
			}
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	comments := map[string][]string{}
	for _, s := range sources(t) {
		if s.test || s.dir == "." {
			continue
		}
		if _, ok := comments[s.dir]; !ok {
			comments[s.dir] = nil
		}
		if s.file.Doc != nil {
			comments[s.dir] = append(comments[s.dir], s.path)
		}
	}
	for dir, files := range comments {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments, want one: %v", dir, len(files), files)
		}
	}
}

func TestOnlyTestsImportTesting(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || strings.HasSuffix(s.dir, "test") || s.dir == "internal/testimage" {
			continue
		}
		for _, i := range s.file.Imports {
			if i.Path.Value == `"testing"` {
				t.Errorf("%s imports testing", s.path)
			}
		}
	}
}

func TestOnlyServerAndCommandLineReadTheEnvironment(t *testing.T) {
	for _, s := range sources(t) {
		if s.test || free(s.dir) || s.dir == "cli" || s.dir == "server" || s.dir == "cmd/berth" || s.dir == "internal/testimage" || s.dir == "build" {
			continue // build hands the user's environment to the user's Go tool
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && x.Name == "os" && (sel.Sel.Name == "Getenv" || sel.Sel.Name == "LookupEnv" || sel.Sel.Name == "Environ") {
				t.Errorf("%s reads the environment with os.%s", s.path, sel.Sel.Name)
			}
			return true
		})
	}
}

func TestNoPackageHasInitFunctions(t *testing.T) {
	for _, s := range sources(t) {
		for _, d := range s.file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Recv == nil && f.Name.Name == "init" {
				t.Errorf("%s has an init function", s.path)
			}
		}
	}
}

func TestArchitectureNamesThingsThatExist(t *testing.T) {
	text := read(t, "ARCHITECTURE.md")
	declared := map[string]map[string]bool{}
	for _, s := range sources(t) {
		names := map[string]bool{}
		declared[s.path] = names
		for _, d := range s.file.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				names[d.Name.Name] = true
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					if ts, ok := spec.(*ast.TypeSpec); ok {
						names[ts.Name.Name] = true
					}
				}
			}
		}
	}
	pointer := regexp.MustCompile("`([a-z][a-z/_]*\\.go):([A-Za-z]+)`")
	found := pointer.FindAllStringSubmatch(text, -1)
	if len(found) == 0 {
		t.Fatal("ARCHITECTURE.md points at no code")
	}
	for _, m := range found {
		if names, ok := declared[m[1]]; !ok {
			t.Errorf("ARCHITECTURE.md names %s, which is not there", m[1])
		} else if !names[m[2]] {
			t.Errorf("ARCHITECTURE.md names %s in %s, which is not there", m[2], m[1])
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
