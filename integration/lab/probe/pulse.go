package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"
)

// beats is what pulse prints of one kind of packet. Times are of the machine's
// clock, which all containers of a lab share.
type beats struct {
	Sent     int       `json:"sent"`
	Received int       `json:"received"`
	From     time.Time `json:"from"` // the longest silence: the last answer before it,
	To       time.Time `json:"to"`   // and the first one after it

	last time.Time // answer
}

// hear notes an answer.
func (b *beats) hear(now time.Time) {
	if b.Received > 0 && now.Sub(b.last) > b.To.Sub(b.From) {
		b.From, b.To = b.last, now
	}
	b.Received++
	b.last = now
}

// pulse sends a ping and a UDP packet to an echo server at a steady pace, whatever
// becomes of them, until ctx ends, and prints when it heard nothing for longest.
// It prints "flowing" when both have been answered.
func pulse(ctx context.Context, to string, every time.Duration) error {
	addr, err := netip.ParseAddr(to)
	if err != nil {
		return err
	}
	network, kind, answer := "ip4:icmp", byte(8), byte(0)
	if addr.Is6() {
		network, kind, answer = "ip6:ipv6-icmp", 128, 129
	}
	icmp, err := net.DialIP(network, nil, &net.IPAddr{IP: addr.AsSlice()})
	if err != nil {
		return err
	}
	port, err := strconv.ParseUint(echoPort, 10, 16)
	if err != nil {
		return err
	}
	udp, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(addr, uint16(port))))
	if err != nil {
		return errors.Join(err, icmp.Close())
	}
	id := uint16(os.Getpid())
	results := map[string]*beats{"ping": {}, "udp": {}}
	var mu sync.Mutex // guards results
	var all sync.WaitGroup
	heard := func(name string) {
		mu.Lock()
		defer mu.Unlock()
		b := results[name]
		b.hear(time.Now())
		if b.Received == 1 && results["ping"].Received > 0 && results["udp"].Received > 0 {
			fmt.Println("flowing")
		}
	}
	for name, c := range map[string]net.PacketConn{"ping": icmp, "udp": udp} {
		all.Go(func() {
			in := make([]byte, 1500)
			for {
				n, _, err := c.ReadFrom(in) // unlike Read, without the IPv4 header
				switch {
				case errors.Is(err, net.ErrClosed):
					return
				case err != nil: // an ICMP error: nobody is there
				case name == "ping" && (n < 8 || in[0] != answer || binary.BigEndian.Uint16(in[4:]) != id):
				default:
					heard(name)
				}
			}
		})
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for seq := uint16(0); ctx.Err() == nil; seq++ {
		p := binary.BigEndian.AppendUint16([]byte{kind, 0, 0, 0}, id)
		p = binary.BigEndian.AppendUint16(p, seq)
		if addr.Is4() { // of ICMPv6 the kernel makes the checksum
			sum := uint32(kind)<<8 + uint32(id) + uint32(seq)
			binary.BigEndian.PutUint16(p[2:], ^uint16(sum>>16+sum))
		}
		_, _ = icmp.Write(p) // nobody may be there
		_, _ = udp.Write(p)
		mu.Lock()
		results["ping"].Sent++
		results["udp"].Sent++
		mu.Unlock()
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	err = errors.Join(icmp.Close(), udp.Close())
	all.Wait()
	return errors.Join(err, json.NewEncoder(os.Stdout).Encode(results))
}
