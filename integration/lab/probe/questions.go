package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// dockerResolver is where containers ask.
const dockerResolver = "127.0.0.11:53"

const dnsHeader = 12 // bytes (RFC 1035 §4.1.1)

// question is a question for the IPv4 addresses of a name, as a message.
func question(id uint16, name string) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0) // recursion desired; one question
	for _, label := range strings.Split(strings.TrimSuffix(name, "."), ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	return append(b, 0, 0, 1, 0, 1) // A, IN
}

// answered is what an answer says.
type answered struct {
	rcode, records int
}

// exchange asks once over a connection and waits for the answer.
func exchange(c net.Conn, q []byte, wait time.Duration) (answered, error) {
	if err := c.SetDeadline(time.Now().Add(wait)); err != nil {
		return answered{}, err
	}
	_, tcp := c.(*net.TCPConn)
	out := q
	if tcp {
		out = append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)
	}
	if _, err := c.Write(out); err != nil {
		return answered{}, err
	}
	b := make([]byte, 1<<16)
	for {
		var n int
		var err error
		if tcp {
			if _, err = io.ReadFull(c, b[:2]); err == nil {
				n, err = io.ReadFull(c, b[:binary.BigEndian.Uint16(b)])
			}
		} else {
			n, err = c.Read(b)
		}
		if err != nil {
			return answered{}, err
		}
		if n >= dnsHeader && b[0] == q[0] && b[1] == q[1] && b[2]&0x80 != 0 {
			return answered{int(b[3] & 0xf), int(binary.BigEndian.Uint16(b[6:]))}, nil
		}
	}
}

// ask asks for a name's IPv4 addresses once, and prints the answer's code, the number
// of its records, and how long it took, in milliseconds. To get none is an error.
func ask(ctx context.Context, name string, tcp bool, wait time.Duration) error {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	begin := time.Now()
	c, err := (&net.Dialer{Timeout: wait}).DialContext(ctx, network, dockerResolver)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	got, err := exchange(c, question(uint16(rand.Uint32()), name), wait)
	if err == nil {
		fmt.Println(got.rcode, got.records, time.Since(begin).Milliseconds())
	}
	return err
}

// burden is what `probe burden` prints.
type burden struct {
	Questions int     `json:"questions"` // that were answered
	Found     int     `json:"found"`     // of them, with records
	Lost      int     `json:"lost"`      // not answered
	PerSecond float64 `json:"per_second"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
}

// askers ask at the same time.
const askers = 4

// burdened asks for a name as often as it is answered, for a while, and prints a summary.
func burdened(ctx context.Context, name string, long, wait time.Duration) error {
	var sum burden
	var mu sync.Mutex // guards sum and took
	var took []time.Duration
	var errs []error
	var all sync.WaitGroup
	begin := time.Now()
	for range askers {
		all.Go(func() {
			var mine []time.Duration
			found, lost := 0, 0
			c, err := (&net.Dialer{}).DialContext(ctx, "udp", dockerResolver)
			for id := uint16(0); err == nil && ctx.Err() == nil && time.Since(begin) < long; id++ {
				asked := time.Now()
				got, err := exchange(c, question(id, name), wait)
				if err != nil {
					lost++
					continue
				}
				mine = append(mine, time.Since(asked))
				if got.records > 0 {
					found++
				}
			}
			if err == nil {
				err = c.Close()
			}
			mu.Lock()
			defer mu.Unlock()
			took, sum.Found, sum.Lost = append(took, mine...), sum.Found+found, sum.Lost+lost
			errs = append(errs, err)
		})
	}
	all.Wait()
	elapsed := time.Since(begin)
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if sum.Questions = len(took); sum.Questions > 0 {
		slices.Sort(took)
		us := func(p int) float64 { return float64(took[(len(took)-1)*p/100]) / float64(time.Microsecond) }
		sum.P50, sum.P99, sum.PerSecond = us(50), us(99), float64(sum.Questions)/elapsed.Seconds()
	}
	return json.NewEncoder(os.Stdout).Encode(sum)
}

// nameserver answers every question over UDP: nobody has that name.
func nameserver(ctx context.Context) error {
	c, err := (&net.ListenConfig{}).ListenPacket(ctx, "udp4", ":53")
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	b := make([]byte, 1<<12)
	for {
		n, from, err := c.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil || n < dnsHeader {
			continue
		}
		b[2], b[3] = b[2]|0x80, 0x83 // QR; RA, NXDOMAIN
		if _, err := c.WriteTo(b[:n], from); err != nil {
			return err
		}
	}
}

// garble sends what is no question, or nearly one, to where containers ask, over UDP
// and TCP, until it is ended. It prints "garbling" once both have begun, and in the end
// how much it sent.
func garble(ctx context.Context) error {
	var packets, streams atomic.Int64
	var err error
	var all sync.WaitGroup
	began := sync.OnceFunc(func() { fmt.Println("garbling") })
	all.Go(func() { err = garbleUDP(ctx, &packets) })
	for range askers {
		all.Go(func() {
			tick := time.NewTicker(time.Millisecond)
			defer tick.Stop()
			for ctx.Err() == nil {
				garbleTCP(ctx)
				if streams.Add(1); packets.Load() > 0 {
					began()
				}
				select {
				case <-tick.C:
				case <-ctx.Done():
				}
			}
		})
	}
	all.Wait()
	fmt.Println(packets.Load(), "packets,", streams.Load(), "connections")
	return err
}

// garbage is a message that nobody should have to read.
func garbage() []byte {
	if rand.IntN(3) == 0 {
		return noise(rand.IntN(1 << 13))
	}
	b := question(uint16(rand.Uint32()), strings.Repeat("x.", 1+rand.IntN(40))+"invalid")
	for range 1 + rand.IntN(4) {
		b[rand.IntN(len(b))] = byte(rand.Uint32())
	}
	return append(b[:dnsHeader+rand.IntN(len(b)-dnsHeader)], noise(rand.IntN(100))...)
}

func noise(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// garbleUDP sends ten packets a millisecond.
func garbleUDP(ctx context.Context, sent *atomic.Int64) error {
	c, err := (&net.Dialer{}).DialContext(ctx, "udp", dockerResolver)
	if err != nil {
		return err
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for ctx.Err() == nil {
		for range 10 {
			_, _ = c.Write(garbage()) // an ICMP error of the packet before it is none of this
			sent.Add(1)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
	return c.Close()
}

// garbleTCP has one conversation: messages, lengths that are lies, and then it leaves, or
// stays for a while without a word.
func garbleTCP(ctx context.Context) {
	c, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "tcp", dockerResolver)
	if err != nil {
		return
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second / 4))
	for range rand.IntN(8) {
		g := garbage()
		size := len(g)
		if rand.IntN(4) == 0 {
			size = rand.IntN(1 << 16)
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(size)), g...)); err != nil {
			return
		}
	}
	if rand.IntN(2) == 0 {
		_, _ = io.Copy(io.Discard, c)
	}
}
