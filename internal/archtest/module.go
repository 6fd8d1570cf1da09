package archtest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"sort"
	"strconv"
	"strings"
)

// pkg is one directory of Go files. Files of an external test package (x_test)
// belong to it as tests.
type pkg struct {
	path  string // relative to the module's root, "." for the root itself
	name  string // of the package clause
	doc   string // the package's doc comment
	files []file
}

type file struct {
	path    string
	test    bool // _test.go
	syntax  *ast.File
	imports []importSpec
}

type importSpec struct {
	path string
	pos  token.Position
}

// module is a parsed source tree. Build constraints are not looked at: a rule
// holds for every file.
type module struct {
	name string // as in go.mod
	pkgs map[string]*pkg
	fset *token.FileSet
}

// load parses all packages of a module. Directories with a go.mod of their own
// are other modules, and testdata is not code.
func load(fsys fs.FS, name string) (*module, error) {
	m := &module{name: name, pkgs: make(map[string]*pkg), fset: token.NewFileSet()}
	err := fs.WalkDir(fsys, ".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p == "." {
				return nil
			}
			if b := path.Base(p); b == "testdata" || b == "vendor" || b[0] == '.' || b[0] == '_' {
				return fs.SkipDir
			}
			if _, err := fs.Stat(fsys, path.Join(p, "go.mod")); err == nil {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(p) != ".go" {
			return nil
		}
		src, err := fs.ReadFile(fsys, p)
		if err != nil {
			return err
		}
		return m.add(p, src)
	})
	if err != nil {
		return nil, fmt.Errorf("read module %s: %w", name, err)
	}
	if len(m.pkgs) == 0 {
		return nil, fmt.Errorf("read module %s: no Go files", name)
	}
	return m, nil
}

func (m *module) add(name string, src []byte) error {
	syntax, err := parser.ParseFile(m.fset, name, src, parser.ParseComments)
	if err != nil {
		return err
	}
	dir := path.Dir(name)
	p := m.pkgs[dir]
	if p == nil {
		p = &pkg{path: dir}
		m.pkgs[dir] = p
	}
	f := file{path: name, test: strings.HasSuffix(name, "_test.go"), syntax: syntax}
	if !f.test {
		p.name = syntax.Name.Name
		if syntax.Doc != nil {
			p.doc += syntax.Doc.Text()
		}
	}
	for _, s := range syntax.Imports {
		ip, err := strconv.Unquote(s.Path.Value)
		if err != nil {
			return err
		}
		f.imports = append(f.imports, importSpec{ip, m.fset.Position(s.Pos())})
	}
	p.files = append(p.files, f)
	return nil
}

// sorted returns the packages by path.
func (m *module) sorted() []*pkg {
	var list []*pkg
	for _, p := range m.pkgs {
		list = append(list, p)
	}
	sort.Slice(list, func(i, j int) bool { return list[i].path < list[j].path })
	return list
}

// local turns an import path into a path within the module; ok is false for
// everybody else's packages.
func (m *module) local(importPath string) (rel string, ok bool) {
	if importPath == m.name {
		return ".", true
	}
	return strings.CutPrefix(importPath, m.name+"/")
}

// reaches returns the chain of imports, without tests, from one package to the
// first that target accepts; nil if there is none.
func (m *module) reaches(from string, target func(string) bool) []string {
	seen := map[string]bool{from: true}
	queue := [][]string{{from}}
	for len(queue) > 0 {
		chain := queue[0]
		queue = queue[1:]
		p := m.pkgs[chain[len(chain)-1]]
		if p == nil {
			continue
		}
		for _, f := range p.files {
			if f.test {
				continue
			}
			for _, i := range f.imports {
				rel, ok := m.local(i.path)
				if !ok || seen[rel] {
					continue
				}
				seen[rel] = true
				next := append(append([]string(nil), chain...), rel)
				if target(rel) {
					return next
				}
				queue = append(queue, next)
			}
		}
	}
	return nil
}
