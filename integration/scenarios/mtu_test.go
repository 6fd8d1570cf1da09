package scenarios

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/integration/lab"
)

// statusSays waits until a host's `carrick status` has, or with "" no longer has, a
// problem with all these words.
func statusSays(t testing.TB, h *lab.Host, there bool, words ...string) {
	t.Helper()
	lab.Eventually(t, patience, fmt.Sprintf("%s's status to say %v: %q", h.Name(), there, words), func() error {
		out, err := h.Carrick(t.Context(), "status")
		text := out + said(err)
		for line := range strings.SplitSeq(text, "\n") {
			all := true
			for _, w := range words {
				all = all && strings.Contains(line, w)
			}
			if all == there && all {
				return nil
			}
			if all {
				return errors.New(line)
			}
		}
		if !there {
			return nil
		}
		return errors.New(text)
	})
}

// sends fails the test unless some megabytes arrive over TCP.
func sends(t testing.TB, from, to box) {
	t.Helper()
	out, err := from.host.InContainer(t.Context(), from.name, "probe", "send", "-mb", "5", to.ip)
	if err != nil || !strings.HasSuffix(out, " "+strconv.Itoa(5<<20)) {
		t.Errorf("5 MB from %s to %s: %s, %v", from.name, to.name, out, err)
	}
}

// While containers run, somebody makes one host's device smaller. It tells the others
// within moments, holds TCP to what fits, and says what is to be done; the network's
// own MTU stays what its containers have. A network that is made now fits
// everybody. When the device is as it was, so is all.
func TestADeviceShrinks(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts(), "app", "10.42.0.0/16")
	var boxes []box
	for _, h := range s.Hosts() {
		boxes = append(boxes, start(t, h, "app", "on-"+h.Name()))
	}
	back := func() { s.h2.MustExec(t, "ip", "link", "set", "eth0", "mtu", "1500") }
	defer back()
	s.h2.MustExec(t, "ip", "link", "set", "eth0", "mtu", "1400")
	statusSays(t, s.h2, true, "app", "MTU is 1450", "carries 1350")
	statusSays(t, s.h1, true, "app", "MTU is 1450", "1350", "host h2")
	for i, b := range boxes {
		b.reaches(t, boxes[(i+1)%len(boxes)])
		sends(t, b, boxes[(i+1)%len(boxes)])
		sends(t, boxes[(i+1)%len(boxes)], b)
	}
	if n := inspect(t, s.h2, "app"); n.MTU != 1450 {
		t.Errorf("the network's MTU is %d by now", n.MTU)
	}
	create(t, s.Hosts(), "late", "10.43.0.0/16")
	far := start(t, s.h2, "late", "late-far")
	near := start(t, s.h1, "late", "late-near")
	if got := s.h1.MustInContainer(t, near.name, "probe", "dfping", "-size", "1350", far.ip); got != "reply" {
		t.Errorf("1350 bytes on a network that was made for them: %s", got)
	}
	back()
	statusSays(t, s.h2, false, "MTU is 1450")
	statusSays(t, s.h1, false, "MTU is 1450")
	if got := s.h1.MustInContainer(t, boxes[0].name, "probe", "dfping", "-size", "1450", boxes[1].ip); got != "reply" {
		t.Errorf("1450 bytes as before: %s", got)
	}
}

// What no network can have is refused where it is asked for, in words that help, and
// leaves nothing. One of them a network may have that was made where it fits.
func TestAnMTUThatDoesNotFit(t *testing.T) {
	s := begin(t)
	out, err := s.h1.Docker(t.Context(), createArgs("big", "10.50.0.0/16", "-o", "mtu=8950")...)
	if text := out + said(err); err == nil || !strings.Contains(text, "mtu=8950") || !strings.Contains(text, "1450") {
		t.Errorf("an MTU of 8950 on an underlay of 1500: %s", text)
	}
	out, err = s.h1.Docker(t.Context(), createArgs("kept", "10.50.0.0/16", "-o", "vni=16777215")...)
	if text := out + said(err); err == nil || !strings.Contains(text, "16777214") {
		t.Errorf("the VNI of probes: %s", text)
	}
}

// A program has the UDP port of a network. A container's start fails, the program is
// named, and nothing is left; when it has gone the container starts.
func TestThePortIsTaken(t *testing.T) {
	s := begin(t)
	create(t, s.Hosts()[:1], "app", "10.42.0.0/16", "-o", "port=8473")
	ctx := t.Context()
	s.h1.MustExec(t, "ip", "link", "add", "theirs", "type", "vxlan", "external", "dstport", "8473")
	s.h1.MustExec(t, "ip", "link", "set", "theirs", "up")
	out, err := s.h1.Docker(ctx, "run", "--rm", "--network", "app", lab.Image, "true")
	if text := out + said(err); err == nil || !strings.Contains(text, "theirs") || !strings.Contains(text, "8473") {
		t.Errorf("run with the port taken by another vxlan device: %s", text)
	}
	s.h1.MustExec(t, "ip", "link", "del", "theirs")
	s.h1.MustDocker(t, "run", "--rm", "--network", "app", lab.Image, "true")
}
