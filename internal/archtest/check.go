package archtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"path"
	"slices"
	"strings"
)

// match says whether a path is named by one of the patterns.
func match(p string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		if stem, ok := strings.CutSuffix(pattern, "/..."); ok {
			return p == stem || strings.HasPrefix(p, stem+"/")
		}
		return p == pattern
	})
}

// under says whether an import path is one of prefixes or below one.
func under(importPath string, prefixes []string) bool {
	return slices.ContainsFunc(prefixes, func(prefix string) bool {
		return importPath == prefix || strings.HasPrefix(importPath, prefix+"/")
	})
}

// rank returns the layer of a package, -1 if it has none.
func rank(p string) int {
	return slices.IndexFunc(layers(), func(l []string) bool { return match(p, l) })
}

// checkPlaces finds packages without a place and places without a package.
func checkPlaces(m *module) (bad []string) {
	for _, p := range m.sorted() {
		if rank(p.path) < 0 && !match(p.path, helpers()) {
			bad = append(bad, fmt.Sprintf("package %s has no place: give it one in layers() or helpers() of internal/archtest/rules.go", p.path))
		}
	}
	named := slices.Concat(layers()...)
	named = append(named, helpers()...)
	for _, s := range separations() {
		named = append(append(named, s.one...), s.other...)
	}
	for _, l := range libraries() {
		named = append(named, l.users...)
	}
	slices.Sort(named)
	for _, n := range slices.Compact(named) {
		exists := slices.ContainsFunc(m.sorted(), func(p *pkg) bool { return match(p.path, []string{n}) })
		if !exists {
			bad = append(bad, fmt.Sprintf("internal/archtest/rules.go speaks of %s, which does not exist: remove or rename it there", n))
		}
	}
	return bad
}

// checkLayers finds imports that do not go down, and test helpers in the
// product.
func checkLayers(m *module) (bad []string) {
	for _, p := range m.sorted() {
		from := rank(p.path)
		if from < 0 {
			continue
		}
		for _, f := range p.files {
			if f.test {
				continue // a test may stand on whatever shows its package at work
			}
			for _, i := range f.imports {
				rel, ok := m.local(i.path)
				if !ok {
					continue
				}
				switch to := rank(rel); {
				case match(rel, helpers()):
					bad = append(bad, fmt.Sprintf("%s: %s imports %s, which exists for tests: it would end up in the binary", i.pos, p.path, rel))
				case to >= from && !match(p.path, []string{"cmd/..."}):
					bad = append(bad, fmt.Sprintf("%s: %s imports %s, which is not below it: imports go down, so that a package can be understood with what is under it alone", i.pos, p.path, rel))
				}
			}
		}
	}
	return bad
}

// checkSeparations finds ways from one side to the other.
func checkSeparations(m *module) (bad []string) {
	for _, s := range separations() {
		for _, dir := range []struct{ from, to []string }{{s.one, s.other}, {s.other, s.one}} {
			for _, p := range m.sorted() {
				if !match(p.path, dir.from) {
					continue
				}
				if chain := m.reaches(p.path, func(q string) bool { return match(q, dir.to) }); chain != nil {
					bad = append(bad, fmt.Sprintf("%s: %s", strings.Join(chain, " imports "), s.reason))
				}
			}
		}
	}
	return bad
}

// checkLibraries finds libraries in packages that may not use them.
func checkLibraries(m *module) (bad []string) {
	for _, p := range m.sorted() {
		for _, f := range p.files {
			for _, i := range f.imports {
				for _, l := range libraries() {
					if !under(i.path, l.imports) || match(p.path, l.users) {
						continue
					}
					if l.users == nil && (f.test || match(p.path, helpers())) {
						continue
					}
					who := "only tests"
					if l.users != nil {
						who = "only " + strings.Join(l.users, ", ")
					}
					bad = append(bad, fmt.Sprintf("%s: %s imports %s, which %s may: %s", i.pos, p.path, i.path, who, l.reason))
				}
			}
		}
	}
	return bad
}

// checkDocs finds packages that do not say what they are.
func checkDocs(m *module) (bad []string) {
	for _, p := range m.sorted() {
		if p.name == "" {
			continue // tests only
		}
		want := "Package " + p.name + " "
		if p.name == "main" {
			want = "Command " + path.Base(p.path) + " "
		}
		if !strings.HasPrefix(p.doc, want) {
			bad = append(bad, fmt.Sprintf("package %s has no doc comment that begins with %q: say what it does and what it must not know", p.path, want))
		}
	}
	return bad
}

const noState = "what a package needs is given to it, so that two of it can live in one process and a test can have its own"

// checkState finds work and mutable state at package level.
func checkState(m *module) (bad []string) {
	for _, p := range m.sorted() {
		var vars []*ast.ValueSpec
		for _, f := range p.files {
			if f.test {
				continue
			}
			for _, d := range f.syntax.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Recv == nil && d.Name.Name == "init" {
						bad = append(bad, fmt.Sprintf("%s: init() in %s: nothing happens because a package is imported", m.fset.Position(d.Pos()), p.path))
					}
				case *ast.GenDecl:
					if d.Tok != token.VAR {
						continue
					}
					for _, s := range d.Specs {
						v := s.(*ast.ValueSpec)
						vars = append(vars, v)
						if why := suspicious(p, d, v); why != "" {
							bad = append(bad, fmt.Sprintf("%s: global %s in %s %s: %s", m.fset.Position(v.Pos()), v.Names[0].Name, p.path, why, noState))
						}
					}
				}
			}
		}
		bad = append(bad, writes(m, p, vars)...)
	}
	return bad
}

// suspicious says what is wrong with a package-level variable, "" if nothing
// is. Constants that Go has no constant for are fine: sentinel errors, patterns,
// tables, embedded files, and what the linker sets in a command.
func suspicious(p *pkg, d *ast.GenDecl, v *ast.ValueSpec) string {
	comment := d.Doc.Text() + v.Doc.Text() + v.Comment.Text()
	switch {
	case v.Names[0].Name == "_":
		return ""
	case hasDirective(d.Doc, "//go:embed") || hasDirective(v.Doc, "//go:embed"):
		return ""
	case match(p.path, []string{"cmd/..."}) && strings.Contains(comment, "set by the linker"):
		return "" // go build -ldflags -X
	case len(v.Values) == 0 && valueType(v.Type):
		return "" // a zero value; see writes
	case len(v.Values) == 0:
		return "has no value, so somebody sets it later"
	}
	for _, value := range v.Values {
		switch x := value.(type) {
		case *ast.CompositeLit: // a table; see writes
		case *ast.CallExpr:
			if !constant(x) {
				return "is made by a call"
			}
		default:
			return "is neither a sentinel error nor a table"
		}
	}
	return ""
}

// valueType says whether a type is one of the plain values of the vocabulary or
// of netip, whose zero value is as good as a constant.
func valueType(e ast.Expr) bool {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	x, ok := s.X.(*ast.Ident)
	return ok && (x.Name == "carrick" || x.Name == "netip")
}

// constant says whether a call makes something that never changes.
func constant(c *ast.CallExpr) bool {
	switch fun := c.Fun.(type) {
	case *ast.ArrayType: // []byte("name")
		return true
	case *ast.SelectorExpr:
		x, ok := fun.X.(*ast.Ident)
		if !ok {
			return false
		}
		switch x.Name + "." + fun.Sel.Name {
		case "errors.New", "fmt.Errorf", "regexp.MustCompile", "netip.MustParseAddr", "netip.MustParsePrefix", "netip.AddrFrom4", "netip.PrefixFrom", "template.Must", "strings.NewReplacer":
			return true
		}
	}
	return false
}

func hasDirective(g *ast.CommentGroup, prefix string) bool {
	return g != nil && slices.ContainsFunc(g.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, prefix) })
}

// writes finds assignments to package-level variables, their elements and their
// fields, outside of tests.
func writes(m *module, p *pkg, vars []*ast.ValueSpec) (bad []string) {
	global := make(map[string]bool)
	for _, v := range vars {
		for _, n := range v.Names {
			global[n.Name] = n.Name != "_"
		}
	}
	// Identifiers that a local declaration shadows are resolved by the parser to
	// that one; a global of another file is not resolved, one of this file is
	// resolved to its ValueSpec.
	isGlobal := func(e ast.Expr) *ast.Ident {
		id := root(e)
		if id == nil || !global[id.Name] {
			return nil
		}
		if id.Obj == nil {
			return id
		}
		if v, ok := id.Obj.Decl.(*ast.ValueSpec); ok && slices.Contains(vars, v) {
			return id
		}
		return nil
	}
	report := func(e ast.Expr) {
		if id := isGlobal(e); id != nil {
			bad = append(bad, fmt.Sprintf("%s: global %s of %s is changed: %s", m.fset.Position(e.Pos()), id.Name, p.path, noState))
		}
	}
	for _, f := range p.files {
		if f.test {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.AssignStmt:
				for _, l := range n.Lhs {
					report(l)
				}
			case *ast.IncDecStmt:
				report(n.X)
			case *ast.UnaryExpr:
				if n.Op == token.AND {
					report(n.X)
				}
			case *ast.CallExpr:
				if id, ok := n.Fun.(*ast.Ident); ok && (id.Name == "delete" || id.Name == "clear") && len(n.Args) > 0 {
					report(n.Args[0])
				}
			}
			return true
		})
	}
	return bad
}

// root returns x of x, x.f, x[i], *x and (x); nil for anything else.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}
