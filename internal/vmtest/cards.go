package vmtest

import (
	"fmt"

	"github.com/carrick-net/carrick"
)

// envQEMU names a program to run instead of what tools/install.sh qemu prints.
const envQEMU = "CARRICK_VM_QEMU"

// CardMAC is the MAC of a guest's network card n, 0 and up. The cards are Intel's 82576,
// of up to 7 virtual functions each, of which none is made yet; they are in slots of their
// own and on one segment. The modules igb and igbvf are loaded.
func CardMAC(n int) carrick.MAC { return carrick.MAC{0x52, 0x54, 0, 0, 0, byte(n + 1)} }

// withCards is the machine with some network cards. Its QEMU must have igb (8.0).
func (m Machine) withCards(n int) Machine {
	for i := range n {
		m.QEMUArgs = append(m.QEMUArgs,
			"-device", fmt.Sprintf("pcie-root-port,id=slot%d,chassis=%d", i, i+1),
			"-netdev", fmt.Sprintf("hubport,id=segment%d,hubid=0", i),
			"-device", fmt.Sprintf("igb,bus=slot%d,netdev=segment%d,mac=%s", i, i, CardMAC(i)))
	}
	m.Modules = append(m.Modules, "igb", "igbvf")
	return m
}
