package nl

import (
	"context"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/carrick-net/carrick"
)

// SetVF gives one of a device's virtual functions the MAC that it may send from: the
// physical function checks it (IFLA_VF_MAC). What the virtual function's own device has
// is the business of its driver, which may follow at once, at its next reset, or refuse
// to be told otherwise from then on (igb_set_vf_mac_addr). The zero MAC takes it away:
// the virtual function may choose. The errno is EOPNOTSUPP if the device is no physical
// function, EINVAL if it has none of that number or wants another MAC.
type SetVF struct {
	PF     Ref
	Number int // 0 and up, as in virtfnN of sysfs
	MAC    carrick.MAC
}

func (SetVF) isChange() {}

// Command is `ip link set PF vf N mac MAC`.
func (c SetVF) Command(ns string) string {
	return fmt.Sprintf("%s link set %s vf %d mac %s", tool("ip", ns), c.PF.Name, c.Number, c.MAC)
}

// struct ifla_vf_mac of linux/if_link.h: the number, and MAX_ADDR_LEN bytes.
const (
	vfNumberLen = 4
	maxAddrLen  = 32
)

// vf appends SetVF.
func (e *encoder) vf(c SetVF, seq uint32) {
	e.begin(unix.RTM_NEWLINK, 0, seq)
	e.ifinfo(unix.AF_UNSPEC, c.PF.Index, 0, 0)
	b := binary.NativeEndian.AppendUint32(make([]byte, 0, vfNumberLen+maxAddrLen), uint32(c.Number))
	b = append(b, c.MAC[:]...)
	e.nest(unix.IFLA_VFINFO_LIST, func() {
		e.nest(unix.IFLA_VF_INFO, func() { e.attr(unix.IFLA_VF_MAC, b[:cap(b)]) })
	})
}

// rtextFilterVF is RTEXT_FILTER_VF of linux/rtnetlink.h: without it a physical function
// says nothing of its virtual ones.
const rtextFilterVF = 1 << 0

func (h *handle) VFs(ctx context.Context, pf Ref) (macs map[int]carrick.MAC, err error) {
	err = h.sock.dump(ctx, tool("ip", h.ns.Name())+" link show "+pf.Name,
		func() { macs = map[int]carrick.MAC{} },
		func(e *encoder, seq uint32) {
			e.begin(unix.RTM_GETLINK, 0, seq)
			e.ifinfo(unix.AF_UNSPEC, pf.Index, 0, 0)
			e.attrU32(unix.IFLA_EXT_MASK, rtextFilterSkipStats|rtextFilterVF)
			if pf.Index == 0 {
				e.attrString(unix.IFLA_IFNAME, pf.Name)
			}
		},
		func(body []byte) error { return decodeVFs(body, macs) })
	if err != nil {
		return nil, err
	}
	return macs, nil
}

// decodeVFs reads IFLA_VFINFO_LIST of RTM_NEWLINK.
func decodeVFs(body []byte, macs map[int]carrick.MAC) error {
	if len(body) < unix.SizeofIfInfomsg {
		return errMalformed
	}
	return attrs(body[unix.SizeofIfInfomsg:], func(typ uint16, list []byte) error {
		if typ != unix.IFLA_VFINFO_LIST {
			return nil
		}
		return attrs(list, func(_ uint16, info []byte) error {
			return attrs(info, func(typ uint16, v []byte) error {
				if typ == unix.IFLA_VF_MAC && len(v) >= vfNumberLen+len(carrick.MAC{}) {
					macs[int(readU32(v))] = carrick.MAC(v[vfNumberLen : vfNumberLen+len(carrick.MAC{})])
				}
				return nil
			})
		})
	})
}
