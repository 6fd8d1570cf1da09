package datapath

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
	"github.com/carrick-net/carrick/netns"
	"github.com/carrick-net/carrick/plan"
)

// whoHasPort explains why a vxlan device cannot be raised. Devices of one UDP port
// share a socket if they agree in whatever decides how it receives: family,
// external, gbp, gpe and the like (vxlan_find_sock, VXLAN_F_RCV_FLAGS). One that does
// not agree, or a program, has the port to itself.
func (o *Overlay) whoHasPort(ctx context.Context, want plan.VXLAN, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	say := func(format string, args ...any) error {
		return inTheWay(err, "UDP port %d of this host is taken by %s: end that, or give this network another port with -o port=N", want.Port, fmt.Sprintf(format, args...))
	}
	odd, any := o.devicesOn(ctx, want)
	if odd != "" {
		return say("%s", odd)
	}
	if program := o.programOn(want.Port); program != "" {
		return say("%s", program)
	}
	if any != "" {
		return say("%s, which receives in another way", any)
	}
	return say("another program (ss -ulnp sport = :%d) or a vxlan device with other flags, in a namespace that has no name here", want.Port)
}

// devicesOn looks for vxlan devices of others on a UDP port, with their socket in the
// host's namespace: one that cannot share it, and any.
func (o *Overlay) devicesOn(ctx context.Context, want plan.VXLAN) (odd, any string) {
	look := func(list []nl.Link, away bool, where string) {
		for _, l := range list {
			v := l.VXLAN
			switch {
			case v == nil || v.Port != want.Port || !l.Up:
				continue
			case away && l.PeerNS == nl.NoNSID:
				continue // its socket is there, too
			case v.Over6() != want.Local.Unmap().Is6() && !v.External:
				continue // external devices receive over both
			}
			flag := ""
			switch {
			case v.External:
				flag = " (external: it takes every VNI)"
			case v.GBP:
				flag = " (gbp)"
			}
			any = fmt.Sprintf("vxlan device %s%s in %s", l.Name, flag, where)
			if flag != "" {
				odd = any
			}
		}
	}
	if list, err := o.hostH.Links(ctx); err == nil {
		look(list, false, "the host's namespace")
	}
	for _, store := range append([]netns.Store{o.cfg.Namespaces}, o.cfg.Elsewhere...) {
		names, err := store.List(ctx, "")
		if err != nil {
			continue // a missing answer is no worse than none
		}
		for _, ns := range names {
			if strings.HasPrefix(ns, plan.NamespacePrefix) {
				continue // ours agree
			}
			if list, err := o.linksOf(ctx, store, ns); err == nil {
				look(list, true, "network namespace "+ns)
			}
		}
	}
	return odd, any
}

// programOn names a program that receives on a UDP port of the host, "" if none is
// found: it may run where this agent cannot look.
func (o *Overlay) programOn(port uint16) string {
	var inodes []string
	_ = netns.Do(o.host, func() error {
		for _, f := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
			b, err := os.ReadFile(f)
			if err == nil {
				inodes = append(inodes, udpInodes(b, port)...)
			}
		}
		return nil
	})
	for _, inode := range inodes {
		want := "socket:[" + inode + "]"
		fds, _ := filepath.Glob("/proc/[0-9]*/fd/*")
		for _, fd := range fds {
			if to, err := os.Readlink(fd); err != nil || to != want {
				continue
			}
			pid := strings.Split(fd, "/")[2]
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			return fmt.Sprintf("the program %s (process %s)", strings.TrimSpace(string(name)), pid)
		}
	}
	return ""
}

// udpInodes lists the sockets of a port in a file like /proc/net/udp, as
// udp4_format_sock writes it: number, local address and port in hex, ..., and the
// inode as the tenth word. The kernel's own sockets have inode 0.
func udpInodes(file []byte, port uint16) []string {
	var out []string
	for lines := bufio.NewScanner(bytes.NewReader(file)); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 10 || words[9] == "0" {
			continue
		}
		_, hex, _ := strings.Cut(words[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(n) == port {
			out = append(out, words[9])
		}
	}
	return out
}
