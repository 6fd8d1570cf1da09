package nstest

import (
	"regexp"
	"slices"
	"strings"
)

var (
	index    = regexp.MustCompile(`^\d+: `)
	peer     = regexp.MustCompile(`@if\d+`)
	anyMAC   = regexp.MustCompile(`\b[0-9a-f]{2}(:[0-9a-f]{2}){5}\b`)
	volatile = regexp.MustCompile(` (qlen|port_id|port_no|designated_\w+|bridge_id|root_port|root_path_cost|\w+_timer|num[tr]xqueues|g[sr]o_\w+|tso_\w+|minmtu|maxmtu|promiscuity|allmulti|topology_change\w*|config_pending|mcast_hash_\w+|group_fwd_mask\w*) +\S+`)
	oneWord  = regexp.MustCompile(` (group default|mode DEFAULT|state (UP|DOWN|UNKNOWN|LOWERLAYERDOWN))`)
	carrier  = regexp.MustCompile(`NO-CARRIER,|,LOWER_UP`)
	// ownRow are rows that the kernel makes for its own addresses and groups.
	ownRow = regexp.MustCompile(`^(xx:|33:33:|01:00:5e:).* permanent$`)
	// kept are the settings of a bridge and its ports that a network depends on.
	kept = regexp.MustCompile(` (learning|flood|mcast_flood|bcast_flood|mcast_router|neigh_suppress|isolated|stp_state|vlan_filtering|mcast_snooping|mcast_querier|mcast_query_use_ifaddr|nf_call_\w+|addrgenmode) +\S+`)
)

// Tidy makes of what a command printed about a kernel lines of a page of docs/datapath:
// without what differs from machine to machine and from version to version, and what the
// kernel finds out in its own time: indexes, MACs and rows of its own, carrier, timers,
// sizes of queues. known are the MACs that stay.
func Tidy(out, command string, known map[string]bool) string {
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(out, "\n"), "\n") {
		line = strings.TrimRight(peer.ReplaceAllString(index.ReplaceAllString(line, ""), "@if"), " ")
		line = oneWord.ReplaceAllString(volatile.ReplaceAllString(line, ""), "")
		for _, kind := range []string{"    bridge ", "    bridge_slave "} {
			if strings.HasPrefix(line, kind) {
				line = strings.TrimRight(kind, " ") + strings.Join(kept.FindAllString(line, -1), "")
			}
		}
		line = anyMAC.ReplaceAllStringFunc(line, func(s string) string {
			if known[s] || strings.HasPrefix(s, "33:33:00") || strings.HasPrefix(s, "01:00:5e") || s == "00:00:00:00:00:00" || s == "ff:ff:ff:ff:ff:ff" {
				return s
			}
			return "xx:xx:xx:xx:xx:xx"
		})
		line = carrier.ReplaceAllString(line, "")
		if ownRow.MatchString(line) || strings.HasPrefix(line, "qdisc noqueue ") {
			continue
		}
		if line = strings.TrimRight(line, " "); line != "" {
			lines = append(lines, "    "+line)
		}
	}
	if !strings.HasPrefix(command, "ip -d") && !strings.HasPrefix(command, "nft") {
		slices.Sort(lines) // the kernel's hash tables have an order of their own
		lines = slices.Compact(lines)
	}
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}
