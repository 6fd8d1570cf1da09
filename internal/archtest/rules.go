package archtest

// module's own packages are named by their path in the module, "." is the
// vocabulary. A path that ends in "/..." stands for all below it.

// layers returns the packages from the bottom up. A package imports only from
// layers below its own, so that each can be understood, tested and replaced
// with what is under it and nothing else.
func layers() [][]string {
	return [][]string{
		{"."},
		{"plan", "dockerapi", "check", "dns/zone"},
		{"kvstore", "netns"},
		{"kvstore/internal/local", "internal/nl", "internal/nft", "cluster/journal", "cluster/snapshot"},
		{"kvstore/memory", "kvstore/bolt", "kvstore/consul", "datapath/fdb", "datapath/announce"},
		{"datapath/dad"},
		{"cluster", "datapath", "probe", "gossip", "dns"},
		{"mirror", "datapath/route"},
		{"datapath/underlay", "datapath/routed"},
		{"ipam", "agent", "status"},
		{"driver"},
		{"internal/daemon"},
		{"cmd/..."},
	}
}

// helpers returns the packages that exist for tests and for developers. Nothing that ends up in
// the binary imports one.
func helpers() []string {
	return []string{"kvstore/storetest", "internal/nltest", "internal/nstest", "datapath/underlay/undertest", "internal/vmtest", "internal/consultest", "internal/sim", "internal/history", "bench", "internal/archtest", "integration/...", "hack/...", "packaging/..."}
}

// apart are two sets of packages that never reach each other, by whatever way.
type apart struct {
	one, other []string
	reason     string
}

func separations() []apart {
	return []apart{{
		one:   []string{"dockerapi", "driver", "ipam", "cluster", "cluster/journal", "cluster/snapshot", "kvstore", "kvstore/memory", "kvstore/bolt", "kvstore/consul"},
		other: []string{"netns", "internal/nl", "internal/nft", "datapath", "datapath/fdb", "datapath/announce", "datapath/dad", "datapath/route", "datapath/routed", "datapath/underlay", "probe", "dns", "dns/zone", "gossip"},
		reason: "facts and effects meet as values in plan and in time in agent: " +
			"a fact that pokes the kernel, or a row that asks the store, is a second path to the kernel that nobody audits",
	}}
}

// library says who may use a library.
type library struct {
	imports []string // import path prefixes
	users   []string // packages that may, tests included
	reason  string
}

func libraries() []library {
	return []library{
		{[]string{"github.com/hashicorp/consul"}, []string{"kvstore/consul"},
			"the store can be replaced because one package knows which it is"},
		{[]string{"github.com/hashicorp/memberlist"}, []string{"gossip"},
			"gossip tells hosts that are down; who speaks with members past it takes an agent's death for a host's"},
		{[]string{"go.etcd.io/bbolt"}, []string{"kvstore/bolt", "cluster/journal"},
			"a file format belongs to the package that owns the file"},
		{[]string{"github.com/vishvananda/netlink", "github.com/vishvananda/netns"}, []string{"internal/nl", "internal/nltest"},
			"internal/nl repeats interrupted dumps and translates errors; a call past it gets partial lists and takes them for the truth"},
		{[]string{"github.com/google/nftables", "github.com/mdlayher/netlink"}, []string{"internal/nft"},
			"internal/nft makes its tables and reads them back; a rule from elsewhere is one that no audit compares"},
		{[]string{"github.com/miekg/dns"}, []string{"dns"},
			"the wire format of names ends in dns, whose zones are in our types"},
		{[]string{"github.com/moby/moby", "github.com/docker/docker"}, []string{"mirror"},
			"mirror is where the engine's API is kept out of the plugin's handlers, from which it can deadlock"},
		{[]string{"github.com/docker/go-plugins-helpers", "github.com/docker/go-connections", "github.com/coreos/go-systemd"}, []string{"dockerapi"},
			"Docker's wire format ends in dockerapi, as typed values"},
		{[]string{"github.com/spf13", "github.com/knadh/koanf"}, []string{"cmd/..."},
			"flags and files are read in one place; everybody else is given values"},
		{[]string{"github.com/prometheus"}, []string{"status", "cmd/..."},
			"packages report through hooks of their own; what is counted and under which name is decided in one place"},
		{[]string{"testing", "net/http/httptest", "testing/synctest", "testing/fstest"}, nil,
			"it is for tests"},
	}
}
