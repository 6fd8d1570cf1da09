package underlay_test

// What the page says around the tables.
const (
	intro = `What macvlan, ipvlan and 802.1q links do, as seen on Debian 12's kernel by the tests of integration/underlay, which make this
page and fail when it has become different.

Two hosts are on a switch. A container has a child of its host's eth0, made with the mode of the row, and an address of
the hosts' subnet. The columns say whom it exchanges UDP packets with, over IPv4 and IPv6 alike: *sibling* is a container on
another child of the same eth0, *there* is on the other host. *Switch reflects* is a port of the switch in hairpin mode.
*Its host's own child* is another child of eth0 that stayed with the host and has an address, and a route to the container over it.
With *routes* each host has a route to the other's container by way of that host. A dash: the kernel refuses a second child.
`
	notes = `- No container reaches its own host's eth0, in any mode. A child of the host's own is the way, in mode bridge only.
- In l3 and l3s nobody is asked for addresses and nobody answers: other hosts need a route to each container, by way of its host.
  The host that has the container needs neither forwarding nor a route. Its own routes decide where the container's packets go.
- Such a route works for ipvlan in mode l2 as well. It does not for macvlan: the host would have to forward, and cannot reach its own child.
- A passthru child has its parent's MAC and gets all that arrives there: the host's own eth0 is cut off (*other host* has one too).
- vepa and private of ipvlan in mode l2 hold back packets between siblings, but not broadcasts, which are copied to all children.
- vepa in l3 does not come back from a reflecting switch: nobody out there answers for the sibling's address.
- In l3 and l3s with vepa, a host's route over its own child is a loop that the kernel breaks ("Dead loop on virtual device" in its log).
`
	vlanIntro = `Each host has an 802.1q sub-interface of eth0 for VLAN 10 with an address, and containers on children of it. The switch
passes tags on.
`
)
