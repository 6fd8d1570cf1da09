package bench

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// table is what a benchmark has to say.
type table struct {
	title string
	about string // under the title: how it was measured
	head  []string
	rows  [][]string
}

func newTable(title, about string, head ...string) *table {
	return &table{title: title, about: about, head: head}
}

// add adds a row; each cell is printed as its format says.
func (t *table) add(cells ...any) {
	row := make([]string, len(cells))
	for i, c := range cells {
		row[i] = cell(c)
	}
	t.rows = append(t.rows, row)
}

// cell prints numbers with the digits that mean something.
func cell(c any) string {
	v, ok := c.(float64)
	switch {
	case !ok:
		return fmt.Sprint(c)
	case v >= 100 || v <= -100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10 || v <= -10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// print writes the table as it is pasted into docs/performance.md. The benchmark
// framework's own line says nothing beside it.
func (t *table) print(b *testing.B) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	var out strings.Builder
	fmt.Fprintf(&out, "\n%s\n%s\n\n", t.title, t.about)
	width := make([]int, len(t.head))
	for _, r := range append([][]string{t.head}, t.rows...) {
		for i, c := range r {
			width[i] = max(width[i], len(c))
		}
	}
	line := func(cells []string) {
		for i, c := range cells {
			if i == 0 {
				fmt.Fprintf(&out, "| %-*s ", width[i], c)
			} else {
				fmt.Fprintf(&out, "| %*s ", width[i], c)
			}
		}
		out.WriteString("|\n")
	}
	line(t.head)
	for i, w := range width {
		if i == 0 {
			out.WriteString("|" + strings.Repeat("-", w+2))
		} else {
			out.WriteString("|" + strings.Repeat("-", w+1) + ":")
		}
	}
	out.WriteString("|\n")
	for _, r := range t.rows {
		line(r)
	}
	fmt.Fprint(os.Stdout, out.String())
}

// quiet keeps what hosts log out of the tables.
type quiet struct{ testing.TB }

func (quiet) Logf(string, ...any) {}
