// Command probe is the tool inside the lab's test image, and the server outside
// the hosts. It does what busybox cannot: packets of an exact size that may not
// be fragmented, streams with checksums, and flows of which no packet may be
// lost.
//
//	probe serve                     HTTP, TCP and UDP servers; ends on SIGTERM
//	probe get [-wait D] URL         print a page
//	probe send [-mb N] ADDR         send N MB over TCP, compare checksums
//	probe dfping [-size N] ADDR     one packet of N bytes that may not be fragmented
//	probe flow [-tcp] ADDR          numbered packets until SIGTERM, then a summary
//	probe pulse [-every D] ADDR     pings and packets until SIGTERM, then when none was answered
//	probe say [-if L] TEXT ADDR     one UDP packet, to a broadcast address or a group as well
//	probe join [-if L] GROUP        print what is said to a group
//	probe lookup [-tcp] NAME...     print what names or addresses resolve to, a line each
//	probe watch [-every D] NAME...  resolve names until SIGTERM, and ask who is there
//	probe ask [-tcp] NAME           one question: print the answer's code and number of records, and the milliseconds
//	probe burden [-for D] NAME      ask for a name as often as possible, then a summary
//	probe garble                    what is no question to where containers ask, until SIGTERM
//	probe nameserver                answer over UDP, until SIGTERM, that nobody has the name
//	probe shout [-if L] [-for D] TEXT ADDR  say it as often as possible
//
// ADDR is the address of a host or container that runs `probe serve`.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"
)

// Ports of `probe serve`.
const (
	httpPort = "80"   // TCP: / is the client's address, /name the server's name, /heard see earPort
	sinkPort = "7000" // TCP: reads to the end, answers with checksum and length
	echoPort = "7001" // TCP and UDP: says back what it is told
	earPort  = "7002" // UDP: what it is told is on the page /heard
)

// errUsage ends the program with status 2.
var errUsage = errors.New("usage: probe serve | get [-wait D] URL | send [-mb N] ADDR | dfping [-size N] [-wait D] ADDR | flow [-tcp] [-every D] [-count N] ADDR | pulse [-every D] ADDR | say [-if LINK] TEXT ADDR | join [-if LINK] GROUP | shout [-if LINK] [-for D] TEXT ADDR | lookup [-tcp] [-wait D] NAME... | watch [-every D] NAME... | ask [-tcp] [-wait D] NAME | burden [-for D] [-wait D] NAME | garble | nameserver")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	mb := f.Int("mb", 10, "megabytes to send")
	size := f.Int("size", 1500, "bytes of the whole IP packet")
	tcp := f.Bool("tcp", false, "one TCP connection instead of UDP packets")
	every := f.Duration("every", 5*time.Millisecond, "time between packets")
	wait := f.Duration("wait", patience, "how long an answer may take")
	count := f.Int("count", 0, "packets to send; 0 = until SIGTERM")
	link := f.String("if", "eth0", "the interface of groups")
	long := f.Duration("for", time.Second, "how long to shout or ask")
	if err := f.Parse(args[1:]); err != nil {
		return errUsage
	}
	if args[0] == "serve" && f.NArg() == 0 {
		return serve(ctx)
	}
	if args[0] == "garble" && f.NArg() == 0 {
		return garble(ctx)
	}
	if args[0] == "nameserver" && f.NArg() == 0 {
		return nameserver(ctx)
	}
	if args[0] == "lookup" && f.NArg() > 0 {
		return lookup(ctx, f.Args(), *tcp, *wait)
	}
	if args[0] == "watch" && f.NArg() > 0 {
		return watch(ctx, f.Args(), *every)
	}
	if args[0] == "say" && f.NArg() == 2 {
		return say(ctx, *link, f.Arg(0), f.Arg(1), 0)
	}
	if args[0] == "shout" && f.NArg() == 2 {
		return say(ctx, *link, f.Arg(0), f.Arg(1), *long)
	}
	if f.NArg() != 1 {
		return errUsage
	}
	to := f.Arg(0)
	switch args[0] {
	case "get":
		return get(ctx, to, *wait)
	case "send":
		return send(ctx, to, *mb)
	case "dfping":
		return dfping(to, *size, *wait)
	case "flow":
		return flow(ctx, to, *tcp, *every, *count)
	case "pulse":
		return pulse(ctx, to, *every)
	case "ask":
		return ask(ctx, to, *tcp, *wait)
	case "burden":
		return burdened(ctx, to, *long, *wait)
	case "join":
		return join(ctx, *link, to)
	}
	return errUsage
}

// patience is how long an answer may take.
const patience = 5 * time.Second

func get(ctx context.Context, url string, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}
