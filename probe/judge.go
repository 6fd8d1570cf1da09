package probe

import (
	"context"
	"fmt"

	"github.com/carrick-net/carrick"
)

const (
	// tries is how often a probe is sent before it counts as lost.
	tries = 3
	// small is a probe that fits wherever anything does.
	small = 128
	// pieces of a probe that the card is to cut.
	cut = 3
	// exact is how close, in bytes, a limit is looked for.
	exact = 4
)

// probe sends a peer what containers send, from what must pass to what often does
// not, and says what is wrong first: the rest would only say it again.
func (p *Prober) probe(ctx context.Context, x *exchange, port Port, peer Peer) found {
	to := macOf(peer.VTEP)
	send := func(k kind, size int) uint16 {
		for range tries {
			if v := x.try(ctx, to, k, size, peer.MTU, p.cfg.Wait); v != 0 || ctx.Err() != nil {
				return v
			}
		}
		return 0
	}
	who := fmt.Sprintf("host %s (%s)", peer.Name, peer.VTEP)
	switch send(finished, small) {
	case verdictCorrupt:
		return found{text: fmt.Sprintf("%s: packets arrive there with other contents than they had: something on the way rewrites UDP port %d", who, port.Port)}
	case 0:
		return found{text: fmt.Sprintf("%s does not answer on UDP port %d, so containers do not reach each other: let it through both hosts' firewalls and whatever is between them (some networks keep it for themselves: give networks another one with -o port=N)", who, port.Port), silent: true}
	}
	const checksums = "the network card here, or its driver, does not finish checksums within VXLAN: ethtool -K %s tx-checksum-ip-generic off tx-udp_tnl-csum-segmentation off tx-udp_tnl-segmentation off"
	switch send(unsummed, small) {
	case verdictCorrupt:
		return found{text: fmt.Sprintf("%s: TCP arrives there with wrong checksums: "+checksums, who, port.Device)}
	case 0:
		return found{text: fmt.Sprintf("%s: TCP does not arrive there whose checksum is left to the network card: "+checksums, who, port.Device)}
	}
	if send(finished, peer.MTU) != verdictWhole {
		carries := limit(small, peer.MTU, func(size int) bool { return send(finished, size) == verdictWhole })
		outer := carries + carrick.Overhead(port.Local)
		return found{text: fmt.Sprintf("%s: packets over %d bytes do not arrive there, and its network's are %d: the way carries %d bytes where the hosts' devices say %d or more: raise the MTU along the way, or set the devices' to what it is",
			who, carries, peer.MTU, outer, peer.MTU+carrick.Overhead(port.Local)), bytes: outer}
	}
	if size := cut*(peer.MTU-sizeIP-sizeTCP) + sizeIP + sizeTCP; size <= 60000 && send(uncut, size) != verdictWhole {
		return found{text: fmt.Sprintf("%s: TCP does not arrive there that the network card is to cut into packets: the card here, or its driver, does not do that within VXLAN: ethtool -K %s tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off", who, port.Device)}
	}
	return found{}
}

// limit is the largest size that passes, where good does and bad does not, give or
// take a few bytes.
func limit(good, bad int, passes func(int) bool) int {
	for bad-good > exact {
		mid := good + (bad-good)/2
		if passes(mid) {
			good = mid
		} else {
			bad = mid
		}
	}
	return good
}
