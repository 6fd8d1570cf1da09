package daemon

import (
	"fmt"
	"slices"
	"strings"

	"github.com/carrick-net/carrick"
)

// families says which hosts of the cluster have a VTEP of the other family than
// this one, "" if none has: VXLAN's outer packets are of one, chosen for a cluster
// by its hosts' --advertise.
func (s *source) families() string {
	hosts, _ := s.cluster.Hosts()
	return otherFamily(s.cluster.SelfHost(), hosts)
}

func otherFamily(self carrick.Host, hosts []carrick.Host) string {
	mine := carrick.FamilyOf(self.VTEP)
	var same int
	var other []string
	for _, h := range hosts {
		switch {
		case h.ID == self.ID:
		case carrick.FamilyOf(h.VTEP) == mine:
			same++
		default:
			other = append(other, fmt.Sprintf("%s (%s)", h.Name, h.VTEP))
		}
	}
	if len(other) == 0 {
		return ""
	}
	slices.Sort(other)
	const few = 5
	list := strings.Join(other[:min(few, len(other))], ", ")
	if n := len(other) - few; n > 0 {
		list += fmt.Sprintf(" and %d more", n)
	}
	where := "there"
	if len(other) > same+1 {
		where = "here"
	}
	return fmt.Sprintf("the VTEP of this host, %s, is %s and that of %s is not, so containers here and there do not reach each other: restart the agent %s with an --advertise of the same family", self.VTEP, mine, list, where)
}
