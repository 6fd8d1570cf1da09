package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"
)

// Inventory is what one host or store holds, a sorted list of lines that are
// equal if and only if the things are. What changes by itself is left out:
// counters, interface indexes, learned neighbours, multicast group rows.
type Inventory []string

// Diff compares two inventories of one thing at two times. Lines that are gone
// begin with "-", new ones with "+"; no difference is "".
func (before Inventory) Diff(after Inventory) string {
	var b strings.Builder
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case j == len(after) || i < len(before) && before[i] < after[j]:
			b.WriteString("- " + before[i] + "\n")
			i++
		case i == len(before) || after[j] < before[i]:
			b.WriteString("+ " + after[j] + "\n")
			j++
		default:
			i, j = i+1, j+1
		}
	}
	return b.String()
}

// Namespaces lists the named network namespaces of the host.
func (h *Host) Namespaces(ctx context.Context) ([]string, error) {
	out, err := h.exec(ctx, "sh", "-c", "mkdir -p /run/netns && ls /run/netns")
	return strings.Fields(out), err
}

// ofNetwork and ofProbes are the names of an agent's namespaces.
var (
	ofNetwork = regexp.MustCompile(`^carrick-[0-9a-f]{16}$`)
	ofProbes  = regexp.MustCompile(`^carrick-probe-`)
)

// Inventory lists what the host holds: its named network namespaces; in the host
// and in each of them the links, addresses, forwarding and permanent neighbour
// entries, routes and nftables rules; Docker's networks, containers and volumes.
//
// Left out is what comes and goes by itself: what nftables sets were given by
// packets, and, while the host has a Carrick network, the namespaces from which its
// agent probes the ways to the others.
func (h *Host) Inventory(ctx context.Context) (Inventory, error) {
	var inv Inventory
	names, err := h.Namespaces(ctx)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(names, ofNetwork.MatchString) {
		names = slices.DeleteFunc(names, ofProbes.MatchString)
	}
	for _, ns := range append([]string{""}, names...) {
		lines, err := h.namespaceInventory(ctx, ns)
		if err != nil {
			// It may have been deleted since it was listed.
			if now, lerr := h.Namespaces(ctx); ns != "" && lerr == nil && !slices.Contains(now, ns) {
				continue
			}
			return nil, err
		}
		if ns != "" {
			inv = append(inv, "netns "+ns)
		}
		for _, l := range lines {
			if ns != "" {
				l = "[" + ns + "] " + l
			}
			inv = append(inv, l)
		}
	}
	if h.EngineRunning() {
		for _, q := range [][]string{
			{"network", "ls", "--format", "docker network {{.Name}} ({{.Driver}})"},
			{"ps", "-a", "--format", "docker container {{.Names}}"},
			{"volume", "ls", "--format", "docker volume {{.Name}}"},
		} {
			out, err := h.Docker(ctx, q...)
			if err != nil {
				return nil, err
			}
			inv = append(inv, strings.FieldsFunc(out, func(r rune) bool { return r == '\n' })...)
		}
	}
	slices.Sort(inv)
	return inv, nil
}

// The part of iproute2's JSON that is compared.
type (
	ipLink struct {
		Name     string   `json:"ifname"`
		MAC      string   `json:"address"`
		Flags    []string `json:"flags"`
		MTU      int      `json:"mtu"`
		Master   string   `json:"master"`
		Alias    string   `json:"ifalias"`
		LinkInfo struct {
			Kind string `json:"info_kind"`
		} `json:"linkinfo"`
		Addrs []struct {
			Local  string `json:"local"`
			Prefix int    `json:"prefixlen"`
			Scope  string `json:"scope"`
		} `json:"addr_info"`
	}
	fdbRow struct {
		MAC    string   `json:"mac"`
		Dev    string   `json:"ifname"`
		Dst    string   `json:"dst"`
		VLAN   int      `json:"vlan"`
		Flags  []string `json:"flags"`
		Master string   `json:"master"`
		State  string   `json:"state"`
	}
	routeRow struct {
		Type     string `json:"type"`
		Dst      string `json:"dst"`
		Dev      string `json:"dev"`
		Gateway  string `json:"gateway"`
		Protocol string `json:"protocol"`
		Table    string `json:"table"`
	}
)

// namespaceInventory lists one network namespace of the host, "" being the
// host's own.
func (h *Host) namespaceInventory(ctx context.Context, ns string) ([]string, error) {
	in := func(args ...string) []string {
		if ns == "" {
			return args
		}
		return append([]string{"nsenter", "--net=/run/netns/" + ns, "--"}, args...)
	}
	read := func(into any, args ...string) error {
		out, err := h.exec(ctx, in(args...)...)
		if err != nil {
			return err
		}
		if strings.TrimSpace(out) == "" {
			return nil
		}
		if err := json.Unmarshal([]byte(out), into); err != nil {
			return fmt.Errorf("%s: read the output of %s: %w", h.name, strings.Join(args, " "), err)
		}
		return nil
	}
	var inv []string
	add := func(format string, a ...any) { inv = append(inv, strings.TrimSpace(fmt.Sprintf(format, a...))) }

	var links []ipLink
	if err := read(&links, "ip", "-j", "-d", "addr", "show"); err != nil {
		return nil, err
	}
	macs := make(map[string]string) // by device
	for _, l := range links {
		macs[l.Name] = l.MAC
		up := "down"
		if slices.Contains(l.Flags, "UP") {
			up = "up"
		}
		add("link %s %s mtu %d master %q alias %q %s", l.Name, l.LinkInfo.Kind, l.MTU, l.Master, l.Alias, up)
		for _, a := range l.Addrs {
			if a.Scope != "link" {
				add("addr %s/%d dev %s", a.Local, a.Prefix, l.Name)
			}
		}
	}
	var rows []fdbRow
	if err := read(&rows, "bridge", "-j", "fdb", "show"); err != nil {
		return nil, err
	}
	for _, r := range rows {
		if strings.HasPrefix(r.MAC, "33:33:") || strings.HasPrefix(r.MAC, "01:") {
			continue
		}
		if r.State == "" && r.Dst == "" && !slices.Contains(r.Flags, "extern_learn") {
			continue // learned by a bridge
		}
		if r.MAC == macs[r.Dev] {
			r.MAC = "of the device itself" // random, for most
		}
		add("fdb %s dev %s dst %q master %q vlan %d %s %v", r.MAC, r.Dev, r.Dst, r.Master, r.VLAN, r.State, r.Flags)
	}
	neigh, err := h.exec(ctx, in("sh", "-c", "ip neigh show nud permanent; ip neigh show proxy")...)
	if err != nil {
		return nil, err
	}
	for _, l := range strings.Split(strings.TrimSpace(neigh), "\n") {
		if l != "" {
			add("neigh %s", strings.Join(strings.Fields(l), " "))
		}
	}
	for _, family := range []string{"-4", "-6"} {
		var routes []routeRow
		if err := read(&routes, "ip", "-j", family, "route", "show", "table", "all"); err != nil {
			return nil, err
		}
		for _, r := range routes {
			if family == "-6" && (strings.HasPrefix(r.Dst, "fe80:") || strings.HasPrefix(r.Dst, "ff00:")) {
				continue // come and go with the carrier
			}
			if r.Type == "" {
				r.Type = "unicast"
			}
			add("route %s %s dev %s via %q proto %s table %q", r.Type, r.Dst, r.Dev, r.Gateway, r.Protocol, r.Table)
		}
	}
	rules, err := h.exec(ctx, in("nft", "-s", "list", "ruleset")...)
	if err != nil {
		return nil, err
	}
	chain, elements := "", false
	for _, l := range strings.Split(rules, "\n") {
		l = strings.TrimSpace(l)
		if strings.HasPrefix(chain, "table bridge carrick-") && strings.HasPrefix(l, "elements = {") {
			elements = true
		}
		switch {
		case elements:
			elements = !strings.HasSuffix(l, "}")
		case strings.HasPrefix(l, "table "), strings.HasPrefix(l, "chain "):
			chain = strings.TrimSuffix(l, " {")
			add("nft %s", chain)
		case l == userJump && slices.Contains(inv, "nft "+chain+": "+l):
			// 20.10 puts its jump to DOCKER-USER at the front again whenever a network
			// comes, and two at once do so without looking (arrangeUserFilterRule).
		case l != "" && l != "}":
			add("nft %s: %s", chain, l)
		}
	}
	return inv, nil
}

// userJump is how nft prints the engine's jump to the user's own chain.
const userJump = "counter jump DOCKER-USER"

// Inventory lists what all hosts that have power and the store hold, each line
// with its place.
func (l *Lab) Inventory(ctx context.Context) (Inventory, error) {
	of := make([]Inventory, len(l.hosts))
	g, gctx := errgroup.WithContext(ctx)
	for i, h := range l.hosts {
		if h.On() {
			g.Go(func() error {
				var err error
				of[i], err = h.Inventory(gctx)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	var all Inventory
	for i, h := range l.hosts {
		for _, line := range of[i] {
			all = append(all, h.name+": "+line)
		}
	}
	if len(l.consuls) > 0 {
		keys, err := l.StoreKeys(ctx)
		if err != nil {
			return nil, err
		}
		for _, k := range keys {
			all = append(all, "store: "+k)
		}
	}
	slices.Sort(all)
	return all, nil
}

// MustInventory is Inventory that fails the test.
func (l *Lab) MustInventory(t testing.TB) Inventory {
	t.Helper()
	inv, err := l.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return inv
}
