package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/carrick-net/carrick/integration/lab/hostinit"
)

// The underlay's addresses. Docker's default pools contain 172.31.0.0/16; every
// engine leaves it out by itself, since its eth0 is in it.
const (
	bridge = "ul0"
	// OutsideAddr is the address of the underlay itself: the hosts' default
	// gateway (it forwards nothing), the name server they are configured with
	// (there is none, and the refusal comes at once), and a machine outside the
	// hosts that serves HTTP, see [Lab.OutsideURL].
	OutsideAddr = "172.31.0.254"
)

// hostAddr is host N's address on the underlay, 1 <= n <= 200.
func hostAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, byte(n)}) }

// consulAddr is Consul server N's.
func consulAddr(n int) netip.Addr { return netip.AddrFrom4([4]byte{172, 31, 0, byte(240 + n)}) }

// addr6 is the IPv6 address of whoever has an IPv4 address, in labs with
// [Options.IPv6].
func addr6(a netip.Addr) netip.Addr {
	b := [16]byte{0: 0xfd, 1: 0x31, 15: a.As4()[3]}
	return netip.AddrFrom16(b)
}

// portMAC is fixed, so that a host which comes back is not unreachable until its
// peers' neighbour entries age out.
func portMAC(a netip.Addr) string {
	b := a.As4()
	return fmt.Sprintf("02:00:%02x:%02x:%02x:%02x", b[0], b[1], b[2], b[3])
}

// underlay is the switch between the hosts.
type underlay struct {
	*node
	mtu     int
	ipv6    bool
	outside *daemon
	faults  faults
}

func newUnderlay(dir, initBin string, o Options) *underlay {
	u := &underlay{node: &node{name: "underlay", dir: filepath.Join(dir, "underlay"), init: initBin}, mtu: o.MTU, ipv6: o.IPv6}
	u.outside = &daemon{node: u.node, name: "outside"}
	return u
}

// powerOn makes the bridge and starts the server outside the hosts.
func (u *underlay) powerOn(ctx context.Context, probe string) error {
	if err := u.node.powerOn(ctx, hostinit.Config{Hostname: "underlay"}); err != nil {
		return err
	}
	// With bridge-netfilter on, the bridged frames would visit this namespace's
	// iptables, which are nobody's business here.
	if _, err := os.Stat("/proc/sys/net/bridge"); err == nil {
		if _, err := u.exec(ctx, "sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=0",
			"net.bridge.bridge-nf-call-ip6tables=0", "net.bridge.bridge-nf-call-arptables=0"); err != nil {
			return err
		}
	}
	out := netip.MustParseAddr(OutsideAddr)
	batch := []string{
		"link set lo up",
		fmt.Sprintf("link add %s address %s mtu %d type bridge mcast_snooping 0", bridge, portMAC(out), u.mtu),
		"addr add " + OutsideAddr + "/24 dev " + bridge,
	}
	if u.ipv6 {
		batch = append(batch, fmt.Sprintf("addr add %s/64 dev %s nodad", addr6(out), bridge))
	}
	batch = append(batch, "link set "+bridge+" up")
	if err := u.ip(ctx, batch); err != nil {
		return err
	}
	if _, err := u.outside.start(nil, probe, "serve"); err != nil {
		return err
	}
	return Wait(ctx, 10*time.Second, "the server outside the hosts", func() error {
		_, err := u.exec(ctx, probe, "get", "http://"+OutsideAddr+"/")
		return err
	})
}

// ip runs lines of ip(8) in the underlay's network namespace, seeing the
// machine's process ids.
func (u *underlay) ip(ctx context.Context, lines []string) error {
	_, err := run(ctx, u.name, nil, []byte(strings.Join(lines, "\n")+"\n"), u.startNet, "ip", "-batch", "-")
	return err
}

// plug connects a node that has just been powered on: a port of the node's name
// here, eth0 with the address and a default route there.
func (u *underlay) plug(ctx context.Context, n *node, addr netip.Addr) error {
	pid, err := n.initPID()
	if err != nil {
		return err
	}
	err = u.ip(ctx, []string{
		fmt.Sprintf("link add %s mtu %d type veth peer name eth0 mtu %d address %s netns %d", n.name, u.mtu, u.mtu, portMAC(addr), pid),
		fmt.Sprintf("link set %s master %s up", n.name, bridge),
	})
	if err != nil {
		return err
	}
	lines := []string{
		"link set lo up",
		fmt.Sprintf("addr add %s/24 dev eth0", addr),
	}
	if u.ipv6 {
		lines = append(lines, fmt.Sprintf("addr add %s/64 dev eth0 nodad", addr6(addr)))
	}
	lines = append(lines, "link set eth0 up", "route add default via "+OutsideAddr)
	if u.ipv6 {
		lines = append(lines, "route add ::/0 via "+addr6(netip.MustParseAddr(OutsideAddr)).String())
	}
	_, err = n.feed(ctx, strings.Join(lines, "\n")+"\n", "ip", "-batch", "-")
	return err
}

// unplug removes a node's port. A node that has died takes it along by itself,
// but a moment later.
func (u *underlay) unplug(ctx context.Context, n *node) {
	_, _ = run(ctx, u.name, nil, nil, u.startNet, "ip", "link", "del", n.name)
}
