package cluster

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/carrick-net/carrick"
)

// The key layout, below the prefix of the store's URL:
//
//	v1/epoch                      the store's incarnation and the sequence of structural changes;
//	                              missing or behind means that the store lost its past
//	v1/recovery/HOST              during a recovery: whether the host has written its part again
//	v1/removed/HOST               a host that was removed: fenced until it registers again
//	v1/ask/OWNER/REQUESTER        addresses that one host asks of another, and gives back
//	v1/removed, v1/ask/OWNER      nothing: they keep the prefixes that are watched from being empty
//	v1/host/ID                    a host: name, VTEP, MTU. Not leased: ownership is not liveness
//	v1/name/NAME                  which host holds a name
//	v1/vtep/ADDR                  which host holds a VTEP address
//	v1/node/ID                    leased: the host is alive
//	v1/tenant/TENANT              the tenant's address space: prefix -> network. One record, since
//	                              only one record can see two hosts claim overlapping prefixes at once
//	v1/vni/N                      which network has a VNI
//	v1/key                        with which the agents encrypt what they tell each other directly
//	v1/spec/ID                    what engines are told of a network, and whether it is being removed
//	v1/spec                       nothing, as v1/removed
//	v1/net/ID/conf                the network's configuration
//	v1/net/ID/members             rewritten whenever an alias comes or goes: orders joins and removals
//	v1/net/ID/alias/HOST          the host's Docker networks that stand for it
//	v1/net/ID/head                sequence and ring of recent changes: what watchers block on
//	v1/net/ID/host/HOST           all endpoints of the host in the network; one writer
//	v1/net/ID/ipam/BLOCK          who owns a block
const (
	layout         = "v1/"
	keyEpoch       = layout + "epoch"
	keyKey         = layout + "key"
	prefixRecovery = layout + "recovery/"
	prefixRemoved  = layout + "removed/"
	prefixAsks     = layout + "ask/"
	prefixHosts    = layout + "host/"
	prefixNodes    = layout + "node/"
	prefixSpecs    = layout + "spec/"
	prefixNets     = layout + "net/"
)

func keyRecovery(id carrick.HostID) string { return prefixRecovery + string(id) }
func keyRemoved(id carrick.HostID) string  { return prefixRemoved + string(id) }

// prefixAsksOf selects everything that is asked of one host.
func prefixAsksOf(owner carrick.HostID) string { return prefixAsks + string(owner) + "/" }
func keyAsk(owner, requester carrick.HostID) string {
	return prefixAsksOf(owner) + string(requester)
}

// partiesOfAsk is the inverse of keyAsk.
func partiesOfAsk(key string) (owner, requester carrick.HostID, ok bool) {
	s, ok := strings.CutPrefix(key, prefixAsks)
	o, r, ok2 := strings.Cut(s, "/")
	return carrick.HostID(o), carrick.HostID(r), ok && ok2 && carrick.ValidID(o) && carrick.ValidID(r)
}

func keySpec(id carrick.NetworkID) string { return prefixSpecs + string(id) }

func keyHost(id carrick.HostID) string { return prefixHosts + string(id) }
func keyNode(id carrick.HostID) string { return prefixNodes + string(id) }
func keyName(name string) string       { return layout + "name/" + name }
func keyVTEP(a netip.Addr) string      { return layout + "vtep/" + a.String() }
func keyTenant(t string) string        { return layout + "tenant/" + t }
func keyVNI(v carrick.VNI) string      { return layout + "vni/" + strconv.FormatUint(uint64(v), 10) }

// prefixNet ends in a slash, so that no other network's id can match.
func prefixNet(id carrick.NetworkID) string  { return prefixNets + string(id) + "/" }
func keyConf(id carrick.NetworkID) string    { return prefixNet(id) + "conf" }
func keyMembers(id carrick.NetworkID) string { return prefixNet(id) + "members" }
func keyHead(id carrick.NetworkID) string    { return prefixNet(id) + "head" }
func prefixAliases(id carrick.NetworkID) string {
	return prefixNet(id) + "alias/"
}
func keyAlias(id carrick.NetworkID, h carrick.HostID) string {
	return prefixAliases(id) + string(h)
}
func prefixNetHosts(id carrick.NetworkID) string { return prefixNet(id) + "host/" }
func keyNetHost(id carrick.NetworkID, h carrick.HostID) string {
	return prefixNetHosts(id) + string(h)
}
func prefixBlocks(id carrick.NetworkID) string { return prefixNet(id) + "ipam/" }

// keyBlock writes the prefix's slash as a dash: a slash would look like another
// level of keys.
func keyBlock(id carrick.NetworkID, b netip.Prefix) string {
	return prefixBlocks(id) + b.Addr().String() + "-" + strconv.Itoa(b.Bits())
}

// blockOfKey is the inverse of keyBlock. A block has one key: another spelling of
// it is nobody's.
func blockOfKey(id carrick.NetworkID, key string) (netip.Prefix, bool) {
	s, ok := strings.CutPrefix(key, prefixBlocks(id))
	if !ok {
		return netip.Prefix{}, false
	}
	i := strings.LastIndexByte(s, '-')
	if i < 0 {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s[:i] + "/" + s[i+1:])
	return p, err == nil && p == p.Masked() && key == keyBlock(id, p)
}

// netOfKey splits a key of a network into the network and the rest.
func netOfKey(key string) (id carrick.NetworkID, rest string, ok bool) {
	s, ok := strings.CutPrefix(key, prefixNets)
	if !ok {
		return "", "", false
	}
	n, rest, ok := strings.Cut(s, "/")
	return carrick.NetworkID(n), rest, ok
}
