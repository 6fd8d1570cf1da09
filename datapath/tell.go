package datapath

import (
	"slices"

	"github.com/carrick-net/carrick/datapath/fdb"
	"github.com/carrick-net/carrick/plan"
)

// maxAnnouncements bounds the frames that one run sends, some microseconds each.
// A table that somebody emptied is no reason to talk for a second.
const maxAnnouncements = 4096

// announce tells the containers here of what the rows have just been made to
// say: a container that was in touch with an address may remember it with
// another MAC, or be asking for it this very moment. Containers that are new
// themselves remember nothing. It is done after the rows, so that whoever hears
// it finds the way.
func (r *run) announce(res fdb.Result) {
	if r.a.o.cfg.Announcer == nil {
		return
	}
	var links []int
	for _, p := range r.want.Ports {
		l := r.a.links.byName[p.Name]
		if made := r.raised[p.Endpoint]; l != nil && l.Up && !made {
			links = append(links, l.Index)
		}
	}
	if len(links) == 0 {
		return
	}
	var here []plan.NeighRow
	for _, own := range r.want.Here {
		if _, raised := r.raised[own.Endpoint]; raised && r.rep.Endpoints[own.Endpoint] == nil {
			here = append(here, own.NeighRow)
		}
	}
	rows := slices.Concat(res.Moved, here, res.Added)
	// A link-local address is made of the MAC: nobody remembers it with another.
	rows = slices.DeleteFunc(rows, func(n plan.NeighRow) bool { return n.Addr.IsLinkLocalUnicast() })
	if most := maxAnnouncements / len(links); len(rows) > most {
		r.a.log.Debug("not every address is announced", "rows", len(rows), "announced", most, "ports", len(links))
		rows = rows[:most]
	}
	if len(rows) == 0 {
		return
	}
	if err := r.say(links, rows); err != nil {
		r.a.log.Warn("addresses not announced: containers here find out when their neighbour entries expire", "err", err)
	}
}

func (r *run) say(links []int, rows []plan.NeighRow) error {
	if r.a.voice == nil {
		v, err := r.a.o.cfg.Announcer.Open(r.a.ns)
		if err != nil {
			return err
		}
		r.a.voice = v
	}
	_, err := r.a.voice.Announce(links, rows)
	return err
}
