package archtest

import (
	"os"
	"strings"
	"testing"
	"testing/fstest"
)

const carrick = "github.com/carrick-net/carrick"

// TestModule checks the module this package is in.
func TestModule(t *testing.T) {
	t.Parallel()
	m, err := load(os.DirFS("../.."), carrick)
	if err != nil {
		t.Fatal(err)
	}
	if m.pkgs["."] == nil || m.pkgs["internal/archtest"] == nil {
		t.Fatal("this is not the module's root")
	}
	for name, check := range map[string]func(*module) []string{
		"every package has a place, every place a package": checkPlaces,
		"imports go down":                       checkLayers,
		"facts and effects never meet":          checkSeparations,
		"each library has its users":            checkLibraries,
		"packages say what they are":            checkDocs,
		"no work and no state at package level": checkState,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, b := range check(m) {
				t.Error(b)
			}
		})
	}
}

// TestRulesCanFail shows each rule a tree that breaks it, and one that does not.
func TestRulesCanFail(t *testing.T) {
	t.Parallel()
	imports := func(name string, paths ...string) string {
		s := "package " + name + "\n"
		for _, p := range paths {
			s += "import _ \"" + p + "\"\n"
		}
		return s
	}
	for _, tt := range []struct {
		name  string
		check func(*module) []string
		tree  map[string]string
		want  string // "" = nothing to complain about
	}{
		{"new package", checkPlaces, map[string]string{"egress/a.go": "package egress"}, "package egress has no place"},
		{"renamed package", checkPlaces, map[string]string{"plans/a.go": "package plans"}, "speaks of plan, which does not exist"},

		{"down", checkLayers, map[string]string{"cluster/a.go": imports("cluster", carrick, carrick+"/kvstore")}, ""},
		{"up", checkLayers, map[string]string{"kvstore/a.go": imports("kvstore", carrick+"/cluster")}, "kvstore/a.go:2:8: kvstore imports cluster, which is not below it"},
		{"sideways", checkLayers, map[string]string{"agent/a.go": imports("agent", carrick+"/status")}, "which is not below it"},
		{"the vocabulary imports nothing", checkLayers, map[string]string{"a.go": imports("carrick", carrick+"/plan")}, "which is not below it"},
		{"a test may", checkLayers, map[string]string{"kvstore/a_test.go": imports("kvstore_test", carrick+"/cluster")}, ""},
		{"helper in the product", checkLayers, map[string]string{"agent/a.go": imports("agent", carrick+"/internal/nstest")}, "exists for tests"},

		{"kernel from facts", checkSeparations, map[string]string{"driver/a.go": imports("driver", carrick+"/netns")}, "driver imports netns: facts and effects"},
		{"store from effects, by a third", checkSeparations, map[string]string{
			"datapath/a.go": imports("datapath", carrick+"/helper"),
			"helper/a.go":   imports("helper", carrick+"/kvstore"),
		}, "datapath imports helper imports kvstore"},
		{"both from the agent", checkSeparations, map[string]string{"agent/a.go": imports("agent", carrick+"/netns", carrick+"/cluster")}, ""},

		{"consul", checkLibraries, map[string]string{"cluster/a.go": imports("cluster", "github.com/hashicorp/consul/api")}, "only kvstore/consul may"},
		{"consul in its place", checkLibraries, map[string]string{"kvstore/consul/a.go": imports("consul", "github.com/hashicorp/consul/api")}, ""},
		{"consul in a test", checkLibraries, map[string]string{"cluster/a_test.go": imports("cluster", "github.com/hashicorp/consul/api")}, "only kvstore/consul may"},
		{"netlink", checkLibraries, map[string]string{"datapath/a.go": imports("datapath", "github.com/vishvananda/netlink/nl")}, "only internal/nl"},
		{"docker", checkLibraries, map[string]string{"driver/a.go": imports("driver", "github.com/moby/moby/client")}, "only mirror may"},
		{"likeness of a name", checkLibraries, map[string]string{"driver/a.go": imports("driver", "github.com/moby/mobyish")}, ""},
		{"testing in the product", checkLibraries, map[string]string{"driver/a.go": imports("driver", "testing")}, "only tests may"},
		{"testing in a helper", checkLibraries, map[string]string{"internal/nstest/a.go": imports("nstest", "testing")}, ""},

		{"no doc", checkDocs, map[string]string{"plan/a.go": "package plan"}, "package plan has no doc comment"},
		{"doc", checkDocs, map[string]string{"plan/a.go": "// Package plan plans.\npackage plan", "plan/b.go": "package plan"}, ""},
		{"command", checkDocs, map[string]string{"cmd/carrick/a.go": "// Command carrick runs.\npackage main"}, ""},

		{"init", checkState, map[string]string{"plan/a.go": "package plan\nfunc init() {}"}, "init() in plan"},
		{"method called init", checkState, map[string]string{"plan/a.go": "package plan\ntype t int\nfunc (t) init() {}"}, ""},
		{"constants of all kinds", checkState, map[string]string{"plan/a.go": "package plan\nvar _ I = T{}\nvar (\n\tErrA = errors.New(``)\n\tErrB = fmt.Errorf(`%w`, ErrA)\n\tbucket = []byte(`b`)\n\ttable = map[string]int{`a`: 1}\n\tre = regexp.MustCompile(`x`)\n)\n//go:embed x\nvar page string"}, ""},
		{"linker", checkState, map[string]string{"cmd/carrick/a.go": "package main\n// version is set by the linker.\nvar version = `dev`"}, ""},
		{"linker elsewhere", checkState, map[string]string{"plan/a.go": "package plan\n// version is set by the linker.\nvar version = `dev`"}, "neither a sentinel"},
		{"zero value", checkState, map[string]string{"plan/a.go": "package plan\nvar none netip.Addr"}, ""},
		{"zero value that is set", checkState, map[string]string{"plan/a.go": "package plan\nvar none netip.Addr\nfunc f() { none = x }"}, "is changed"},
		{"lock", checkState, map[string]string{"plan/a.go": "package plan\nvar mu sync.Mutex"}, "has no value"},
		{"registry", checkState, map[string]string{"plan/a.go": "package plan\nvar all = make(map[string]int)"}, "is made by a call"},
		{"pointer", checkState, map[string]string{"plan/a.go": "package plan\nvar p = &T{}"}, "neither a sentinel"},
		{"table that is written to", checkState, map[string]string{"plan/a.go": "package plan\nvar t = map[string]int{}", "plan/b.go": "package plan\nfunc f() { t[`a`] = 1 }"}, "b.go:2:12: global t of plan is changed"},
		{"table that is deleted from", checkState, map[string]string{"plan/a.go": "package plan\nvar t = map[string]int{}\nfunc f() { delete(t, `a`) }"}, "is changed"},
		{"address taken", checkState, map[string]string{"plan/a.go": "package plan\nvar t = T{}\nfunc f() *T { return &t }"}, "is changed"},
		{"local of the same name", checkState, map[string]string{"plan/a.go": "package plan\nvar t = T{}", "plan/b.go": "package plan\nfunc f() { t := 1; t = 2; t++; _ = &t }\nfunc g(t int) { t = 1 }"}, ""},
		{"tests may", checkState, map[string]string{"plan/a_test.go": "package plan\nvar t int\nfunc init() {}"}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tree := make(fstest.MapFS)
			for p, src := range tt.tree {
				tree[p] = &fstest.MapFile{Data: []byte(src)}
			}
			m, err := load(tree, carrick)
			if err != nil {
				t.Fatal(err)
			}
			got := strings.Join(tt.check(m), "\n")
			if tt.want == "" && got != "" || !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// TestOtherModules: tools have a go.mod of their own and their own rules.
func TestOtherModules(t *testing.T) {
	t.Parallel()
	m, err := load(fstest.MapFS{
		"a.go":                 {Data: []byte("package carrick")},
		"tools/x/go.mod":       {Data: []byte("module x")},
		"tools/x/a.go":         {Data: []byte("package x")},
		"plan/testdata/b.go":   {Data: []byte("not Go")},
		"plan/.hidden/b.go":    {Data: []byte("not Go")},
		"internal/x/x.go":      {Data: []byte("package x")},
		"internal/x/x_test.go": {Data: []byte("package x_test")},
	}, carrick)
	if err != nil {
		t.Fatal(err)
	}
	if len(m.pkgs) != 2 || m.pkgs["."] == nil || m.pkgs["internal/x"] == nil {
		t.Errorf("packages: %v", m.pkgs)
	}
	if _, err := load(fstest.MapFS{}, carrick); err == nil {
		t.Error("an empty tree passed")
	}
}
