package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick/internal/nl"
)

// sysctls gives the namespace's settings their values. The kernel tells nobody
// when one changes, so only a reading finds it. Those of a link are there once the
// link is.
func (r *run) sysctls() error {
	a := r.a
	var names []string
	for _, s := range r.want.Sysctls {
		names = append(names, s.Name)
	}
	if a.sysctls == nil || slices.ContainsFunc(names, func(n string) bool { _, known := a.sysctls[n]; return !known }) {
		held, err := a.h.Sysctls(r.ctx, names...)
		if err != nil {
			return err
		}
		a.sysctls = map[string]string{}
		for _, n := range names {
			a.sysctls[n] = held[n]
		}
	}
	var errs []error
	for _, s := range r.want.Sysctls {
		found := a.sysctls[s.Name]
		if found == s.Value || found == "" && s.Optional {
			continue
		}
		err := one(r.ctx, a.h, nl.SetSysctl{Name: s.Name, Value: s.Value})
		switch {
		case err == nil:
			r.rep.Changes.Sysctls++
			a.sysctls[s.Name] = s.Value
			if strings.HasSuffix(s.Name, ".disable_ipv6") {
				// IPv6 took the neighbours with it when it was turned off.
				a.rows.QueueResync()
			}
			if before, ok := a.before(s.Name); ok && before == s.Value && r.rep.Resync != "" && !r.ofFresh(s.Name) {
				r.rep.Note(Finding{Kind: KindSysctl, Object: s.Name, Found: found, Want: s.Value})
			}
		case s.Optional && readOnly(err):
			a.log.Debug("sysctl left as it is", "err", err)
			a.sysctls[s.Name] = ""
		default:
			a.sysctls = nil
			errs = append(errs, err)
		}
		if a.sysctls == nil {
			break
		}
	}
	return errors.Join(errs...)
}

// renewed notes that a link's settings are those of a new one.
func (r *run) renewed(l *nl.Link) {
	if r.fresh == nil {
		r.fresh = map[int]bool{}
	}
	r.fresh[l.Index] = true
	r.a.sysctls = nil
}

// ofFresh says whether a setting is that of a link that was just made: then it is
// the link that was missing, and nothing else.
func (r *run) ofFresh(name string) bool {
	for i := range r.fresh {
		if l := r.a.links.byIndex[i]; l != nil && strings.HasPrefix(name, "net.ipv6.conf."+l.Name+".") {
			return true
		}
	}
	return false
}

// before is what the last run left of a sysctl.
func (a *Applier) before(name string) (string, bool) {
	if a.applied == nil {
		return "", false
	}
	v, ok := a.applied.sysctls[name]
	return v, ok
}

// readOnly says whether /proc/sys cannot be written here, as in a managed plugin.
func readOnly(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}

// addresses takes addresses off the links of the namespace: whoever has one there
// answers for it in the network.
func (r *run) addresses() error {
	if r.rep.Resync == "" || r.want.Partial {
		return nil
	}
	list, err := r.a.h.Addresses(r.ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range list {
		l := r.a.links.byIndex[x.Link]
		if l == nil || l.Kind == "" || fallback(l) {
			continue // the loopback device and what is not ours to care about
		}
		if err := one(r.ctx, r.a.h, nl.DelAddress{Link: l.Ref, Prefix: x.Prefix}); err != nil {
			if !errors.Is(err, nl.ErrNotFound) {
				errs = append(errs, err)
			}
			continue
		}
		r.rep.Changes.Addresses++
		if r.a.applied != nil {
			r.rep.Note(Finding{Kind: KindAddress, Object: x.Prefix.String(), Found: fmt.Sprintf("of %s", l.Name)})
		}
	}
	return errors.Join(errs...)
}
