package underlay_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/carrick-net/carrick/internal/vmtest"
)

// docs/datapath/underlay.md shows what the tests saw. TestUnderlay makes it, and
// fails when it is not what it would make now:
//
//	go test -run TestUnderlay ./integration/underlay -update        (make docs)

var update = flag.Bool("update", false, "write docs/datapath/underlay.md again")

const (
	pageDir = "../../docs/datapath"
	page    = pageDir + "/underlay.md"
)

// TestUnderlay is one test because a boot of a virtual machine is dearer than any
// of its parts.
func TestUnderlay(t *testing.T) {
	needs := vmtest.Needs{
		Features: []vmtest.Feature{vmtest.Dummy, vmtest.IPVLAN, vmtest.MACVLAN, vmtest.VLAN},
		Writable: []string{pageDir},
	}
	vmtest.Run(t, needs, func(t *testing.T) {
		var p found
		t.Run("all", func(t *testing.T) {
			for _, r := range rows() {
				t.Run(r.String(), func(t *testing.T) {
					t.Parallel()
					p.reach(t, r)
				})
			}
			for _, r := range vlanRows() {
				t.Run("vlan "+r.String(), func(t *testing.T) {
					t.Parallel()
					p.tagged(t, r)
				})
			}
			for _, f := range facts() {
				t.Run(f.what, func(t *testing.T) {
					t.Parallel()
					p.ask(t, f)
				})
			}
		})
		p.compare(t)
	})
}

// found is what has been seen so far.
type found struct {
	mu            sync.Mutex        // guards the rest
	reached, vlan map[string]string // lines of the tables
	said          map[string]string
}

func (p *found) reach(t *testing.T, r row) {
	w := newWorld(t, r)
	w.look()
	for _, f := range families() {
		for i, title := range titles() {
			seen := w.seen[f.name][i]
			if seen != "" && seen != r.want[i] {
				t.Errorf("%s: %s, %s: %s, and should be %s", r, f.name, title, seen, r.want[i])
			}
		}
	}
	cells := w.cells()
	p.keep(&p.reached, r.String(), line(append([]string{r.String()}, cells[:]...)))
}

// keep adds to one of the tables.
func (p *found) keep(table *map[string]string, key, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if *table == nil {
		*table = map[string]string{}
	}
	(*table)[key] = text
}

// line is one of a table.
func line(cells []string) string { return "| " + strings.Join(cells, " | ") + " |\n" }

// head is the first two lines of a table.
func head(cells []string) string {
	return line(cells) + "|" + strings.Repeat("---|", len(cells)) + "\n"
}

// text is the page.
func (p *found) text() string {
	var b bytes.Buffer
	b.WriteString("<!-- made by make docs -->\n\n# Links that share a host's own\n\n" + intro + "\n")
	reach := titles()
	b.WriteString(head(append([]string{""}, reach[:]...)))
	for _, r := range rows() {
		b.WriteString(p.reached[r.String()])
	}
	b.WriteString("\n" + notes + "\n## On VLANs\n\n" + vlanIntro + "\n")
	tagged := vlanTitles()
	b.WriteString(head(append([]string{""}, tagged[:]...)))
	for _, r := range vlanRows() {
		b.WriteString(p.vlan[r.String()])
	}
	b.WriteString("\n## What else the kernel says\n\n" + head([]string{"what", "after", "command", "answer"}))
	for _, f := range facts() {
		b.WriteString(p.said[f.what])
	}
	return b.String()
}

// compare writes the page or compares it. A part of the tests makes a part of a
// page, which is not compared.
func (p *found) compare(t *testing.T) {
	if len(p.reached) < len(rows()) || len(p.vlan) < len(vlanRows()) || len(p.said) < len(facts()) {
		return
	}
	text := p.text()
	if *update {
		if err := os.WriteFile(page, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range strings.Split(text, "\n") {
		lines := strings.Split(string(have), "\n")
		if i >= len(lines) || lines[i] != want {
			t.Fatalf("%s is not what the kernel does: make docs writes it again. Line %d should be\n%s", page, i+1, fmt.Sprint(want))
		}
	}
}
