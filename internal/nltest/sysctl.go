package nltest

import (
	"context"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
)

// bridgeFilter is what a namespace has of bridge-netfilter when it is made.
func bridgeFilter() map[string]string {
	return map[string]string{
		"net.bridge.bridge-nf-call-arptables": "1",
		"net.bridge.bridge-nf-call-ip6tables": "1",
		"net.bridge.bridge-nf-call-iptables":  "1",
	}
}

// conf6 is an IPv6 setting's default value; "" = it is not modelled.
func conf6(setting string) string {
	return map[string]string{"disable_ipv6": "0", "accept_ra": "1"}[setting]
}

// ofLink splits a name of a link's IPv6 setting. A link below IPv6's MTU has
// none.
func (s *space) ofLink(name string) (l *link, setting string) {
	rest, ok := strings.CutPrefix(name, "net.ipv6.conf.")
	if !ok {
		return nil, ""
	}
	dev, setting, _ := strings.Cut(rest, ".")
	if l = s.byName(dev); l == nil || l.MTU < minMTU6 || conf6(setting) == "" {
		return nil, ""
	}
	return l, setting
}

func (s *space) sysctl(name string) (string, bool) {
	if l, setting := s.ofLink(name); l != nil {
		if v, ok := l.conf6[setting]; ok {
			return v, true
		}
		return conf6(setting), true
	}
	v, ok := s.sysctls[name]
	return v, ok
}

func (s *space) setSysctl(c nl.SetSysctl, fail failFunc) error {
	if s.k.fixed {
		return fail(unix.EROFS, "")
	}
	l, setting := s.ofLink(c.Name)
	if l == nil {
		if _, ok := s.sysctls[c.Name]; !ok {
			return fail(unix.ENOENT, "")
		}
		s.sysctls[c.Name] = c.Value
		return nil
	}
	if l.conf6 == nil {
		l.conf6 = map[string]string{}
	}
	l.conf6[setting] = c.Value
	if setting == "disable_ipv6" && c.Value != "0" {
		s.dropNeigh6(l)
	}
	return nil
}

// noIPv6 says whether a link takes no IPv6 neighbours.
func (s *space) noIPv6(l *link) bool {
	return l.MTU < minMTU6 || l.conf6["disable_ipv6"] == "1"
}

func (h *handle) Sysctls(ctx context.Context, names ...string) (map[string]string, error) {
	unlock, err := h.begin(ctx, "Sysctls")
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := map[string]string{}
	for _, n := range names {
		if v, ok := h.s.sysctl(n); ok {
			out[n] = v
		}
	}
	return out, nil
}

// FixSysctls makes /proc/sys read-only, as it is in a container, or writable.
func (k *Kernel) FixSysctls(fixed bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.fixed = fixed
}

// HostLimit gives the host a setting that is the machine's alone, such as the
// limits of its neighbour tables.
func (k *Kernel) HostLimit(name, value string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.host.sysctls[name] = value
}

// Sysctl is the value of a setting; "" = there is none.
func (k *Kernel) Sysctl(namespace, name string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	v, _ := k.named(namespace).sysctl(name)
	return v
}

// AddAddress puts addresses on links, as somebody else would.
func (k *Kernel) AddAddress(namespace string, as ...nl.Address) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.named(namespace)
	s.addrs = append(s.addrs, as...)
}

func (s *space) delAddress(c nl.DelAddress, fail failFunc) error {
	a := nl.Address{Link: c.Link.Index, Prefix: c.Prefix}
	if !slices.Contains(s.addrs, a) {
		return fail(unix.EADDRNOTAVAIL, "")
	}
	s.addrs = slices.DeleteFunc(s.addrs, func(x nl.Address) bool { return x == a })
	return nil
}
