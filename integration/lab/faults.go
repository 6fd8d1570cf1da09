package lab

import (
	"context"
	"fmt"
	"strings"
	"sync"
)

// faults is what stands in the way on the underlay: a list of rules, written
// anew as one nftables transaction at each change, so that the kernel holds the
// list and nothing else.
type faults struct {
	mu    sync.Mutex // guards rules, and the order in which they are written
	rules []string
}

// table is in the bridge family: frames between ports pass its forward hook.
const table = "lab"

// faultScript is what makes nft hold the rules.
func faultScript(rules []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "add table bridge %s\ndelete table bridge %s\n", table, table)
	if len(rules) == 0 {
		return b.String()
	}
	fmt.Fprintf(&b, "add table bridge %s\nadd chain bridge %s f { type filter hook forward priority 0; }\n", table, table)
	for _, r := range rules {
		fmt.Fprintf(&b, "add rule bridge %s f %s\n", table, r)
	}
	return b.String()
}

// addFaults adds rules to the list.
func (u *underlay) addFaults(ctx context.Context, rules ...string) error {
	u.faults.mu.Lock()
	defer u.faults.mu.Unlock()
	next := append(append([]string{}, u.faults.rules...), rules...)
	if _, err := u.feed(ctx, faultScript(next), "nft", "-f", "-"); err != nil {
		return err
	}
	u.faults.rules = next
	return nil
}

// dropBothWays are the rules between two ports.
func dropBothWays(a, b string) []string {
	return []string{
		fmt.Sprintf("iifname %q oifname %q counter drop", a, b),
		fmt.Sprintf("iifname %q oifname %q counter drop", b, a),
	}
}

// Cut pulls a host's cable.
func (l *Lab) Cut(ctx context.Context, h *Host) error {
	return l.underlay.ip(ctx, []string{"link set " + h.name + " down"})
}

// Heal plugs a host's cable in again. Rules stay; see [Lab.Clear].
func (l *Lab) Heal(ctx context.Context, h *Host) error {
	return l.underlay.ip(ctx, []string{"link set " + h.name + " up"})
}

// Split drops everything between two hosts. Nobody is told: connections stall,
// they are not refused.
func (l *Lab) Split(ctx context.Context, a, b *Host) error {
	return l.underlay.addFaults(ctx, dropBothWays(a.name, b.name)...)
}

// Oneway drops everything from one host to another, and nothing back.
func (l *Lab) Oneway(ctx context.Context, from, to *Host) error {
	return l.underlay.addFaults(ctx, fmt.Sprintf("iifname %q oifname %q counter drop", from.name, to.name))
}

// Loss drops a share of the frames a host sends, at random; percent is from 0
// to 100, in steps of a tenth.
func (l *Lab) Loss(ctx context.Context, h *Host, percent float64) error {
	return l.underlay.addFaults(ctx, fmt.Sprintf("iifname %q %scounter drop", h.name, chance(percent)))
}

// chance is the part of a rule that makes it match a share of the frames.
func chance(percent float64) string {
	if n := int(percent * 10); n < 1000 {
		return fmt.Sprintf("numgen random mod 1000 < %d ", n)
	}
	return ""
}

// CutFromConsul separates a host from every Consul server and from nobody else.
func (l *Lab) CutFromConsul(ctx context.Context, h *Host) error {
	var rules []string
	for _, c := range l.consuls {
		rules = append(rules, dropBothWays(h.name, c.name)...)
	}
	return l.underlay.addFaults(ctx, rules...)
}

// LossToConsul drops a share of the frames between a host and every Consul server,
// both ways, at random; percent is as for [Lab.Loss].
func (l *Lab) LossToConsul(ctx context.Context, h *Host, percent float64) error {
	var rules []string
	for _, c := range l.consuls {
		for _, r := range dropBothWays(h.name, c.name) {
			rules = append(rules, strings.TrimSuffix(r, "counter drop")+chance(percent)+"counter drop")
		}
	}
	return l.underlay.addFaults(ctx, rules...)
}

// CutServer separates a Consul server from the other servers and from nobody else.
func (l *Lab) CutServer(ctx context.Context, c *Consul) error {
	var rules []string
	for _, o := range l.consuls {
		if o != c {
			rules = append(rules, dropBothWays(c.name, o.name)...)
		}
	}
	return l.underlay.addFaults(ctx, rules...)
}

// CutFromHosts separates a host from every other host and from nobody else.
func (l *Lab) CutFromHosts(ctx context.Context, h *Host) error {
	var rules []string
	for _, o := range l.hosts {
		if o != h {
			rules = append(rules, dropBothWays(h.name, o.name)...)
		}
	}
	return l.underlay.addFaults(ctx, rules...)
}

// DropUDP drops UDP packets to a port that a host sends, such as 4789 for
// VXLAN.
func (l *Lab) DropUDP(ctx context.Context, h *Host, port uint16) error {
	return l.underlay.addFaults(ctx, fmt.Sprintf("iifname %q meta l4proto udp udp dport %d counter drop", h.name, port),
		fmt.Sprintf("iifname %q ether type ip udp dport %d counter drop", h.name, port))
}

// Rate limits what a host can receive, as tc(8) writes it: "10mbit".
func (l *Lab) Rate(ctx context.Context, h *Host, rate string) error {
	_, err := l.underlay.exec(ctx, "tc", "qdisc", "replace", "dev", h.name, "root", "tbf", "rate", rate, "burst", "64kb", "latency", "50ms")
	return err
}

// Clear removes every fault: rules, rates, pulled cables.
func (l *Lab) Clear(ctx context.Context) error {
	u := l.underlay
	u.faults.mu.Lock()
	defer u.faults.mu.Unlock()
	if _, err := u.feed(ctx, faultScript(nil), "nft", "-f", "-"); err != nil {
		return err
	}
	u.faults.rules = nil
	for _, h := range l.hosts {
		if !h.On() {
			continue
		}
		// A port without a rate has no qdisc to delete.
		_, _ = u.exec(ctx, "tc", "qdisc", "del", "dev", h.name, "root")
		if err := u.ip(ctx, []string{"link set " + h.name + " up"}); err != nil {
			return err
		}
	}
	return nil
}

// Faults describes what is in the way, with the rules' packet counters, for
// people.
func (l *Lab) Faults(ctx context.Context) (string, error) {
	return l.underlay.exec(ctx, "nft", "list", "ruleset")
}
