package packaging

import (
	"bufio"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// socket is where engines look for a driver called carrick.
const socket = "/run/docker/plugins/carrick.sock"

// unit is a systemd unit: section, key, values in order.
type unit map[string]map[string][]string

// readUnit reads the part of systemd.syntax(7) that our units use.
func readUnit(t *testing.T, name string) unit {
	t.Helper()
	f, err := os.Open(filepath.Join("systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	u, section := unit{}, ""
	for s := bufio.NewScanner(f); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '[':
			section = strings.Trim(line, "[]")
			u[section] = map[string][]string{}
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || section == "" || strings.HasSuffix(line, `\`) {
				t.Fatalf("%s: line %q", name, line)
			}
			u[section][key] = append(u[section][key], value)
		}
	}
	return u
}

// words returns all words of a setting.
func (u unit) words(section, key string) []string {
	return strings.Fields(strings.Join(u[section][key], " "))
}

func (u unit) expect(t *testing.T, section, key string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !slices.Contains(u.words(section, key), w) {
			t.Errorf("[%s] %s=%v lacks %s", section, key, u.words(section, key), w)
		}
	}
}

// TestUnitsOrder: the socket is there before an engine can ask for it, and the
// agent outlives the engine at a shutdown.
func TestUnitsOrder(t *testing.T) {
	t.Parallel()
	so, se := readUnit(t, "carrick.socket"), readUnit(t, "carrick.service")
	so.expect(t, "Unit", "Before", "docker.service")
	so.expect(t, "Install", "WantedBy", "sockets.target")
	se.expect(t, "Unit", "Before", "docker.service")
	se.expect(t, "Unit", "Requires", "carrick.socket")
	se.expect(t, "Unit", "After", "carrick.socket")
	se.expect(t, "Install", "WantedBy", "multi-user.target")
	se.expect(t, "Install", "Also", "carrick.socket")
	if got := so.words("Socket", "ListenStream"); !slices.Equal(got, []string{socket}) {
		t.Errorf("ListenStream=%v, want %s and nothing else", got, socket)
	}
	for _, key := range []string{"After", "Requires", "Requisite", "BindsTo", "PartOf"} {
		for _, w := range se.words("Unit", key) {
			if strings.HasPrefix(w, "docker") {
				t.Errorf("%s=%s: the agent answers Docker while it boots and goes on without it", key, w)
			}
		}
	}
}

// TestServiceKeepsItsMountsVisible: a mount namespace of the service's own would
// hide the networks' namespaces from the host, whatever MountFlags says
// (systemd.exec(5), MountFlags=).
func TestServiceKeepsItsMountsVisible(t *testing.T) {
	t.Parallel()
	hiding := []string{
		"MountFlags", "PrivateMounts", "ProtectSystem", "ProtectHome", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths",
		"ExecPaths", "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "PrivateTmp", "PrivateDevices",
		"ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups", "ProtectProc", "ProcSubset",
		"MountAPIVFS", "RootDirectory", "RootImage", "DynamicUser", "LogNamespace", "PrivateNetwork", "NetworkNamespacePath",
		"PrivateUsers", "PrivateIPC", "IPCNamespacePath", "MountImages", "ExtensionImages", "ExtensionDirectories", "LoadCredential",
		"SetCredential", "LoadCredentialEncrypted", "SetCredentialEncrypted", "ProtectHostname",
	}
	se := readUnit(t, "carrick.service")
	for _, key := range hiding {
		if v, ok := se["Service"][key]; ok {
			t.Errorf("%s=%v gives the service a namespace of its own", key, v)
		}
	}
}

// TestServiceMayDoItsWork and comes back whatever happens to it.
func TestServiceMayDoItsWork(t *testing.T) {
	t.Parallel()
	se := readUnit(t, "carrick.service")
	se.expect(t, "Service", "ExecStart", "/usr/bin/carrick", "agent")
	se.expect(t, "Service", "Restart", "always")
	se.expect(t, "Unit", "StartLimitIntervalSec", "0")
	se.expect(t, "Service", "KillMode", "mixed")
	se.expect(t, "Service", "CapabilityBoundingSet", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN")
	se.expect(t, "Service", "RestrictNamespaces", "net")
	se.expect(t, "Service", "RestrictAddressFamilies", "AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK")
	se.expect(t, "Service", "SystemCallFilter", "@system-service", "@mount", "setns", "unshare")
	se.expect(t, "Service", "StateDirectory", "carrick")
	se.expect(t, "Service", "RuntimeDirectoryPreserve", "yes")
}

// TestSystemdAcceptsTheUnits with systemd's own checker.
func TestSystemdAcceptsTheUnits(t *testing.T) {
	t.Parallel()
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed (make deps)")
	}
	dir := t.TempDir()
	for _, name := range []string{"carrick.socket", "carrick.service"} {
		b, err := os.ReadFile(filepath.Join("systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// The checker wants the program to exist.
		b = []byte(strings.ReplaceAll(string(b), "ExecStart=/usr/bin/carrick", "ExecStart=/bin/true"))
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), analyze, "verify", "--man=no", filepath.Join(dir, "carrick.socket"), filepath.Join(dir, "carrick.service"))
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
	// It only warns of keys that it does not know.
	for line := range strings.Lines(string(out)) {
		if strings.Contains(line, "carrick.") {
			t.Error(line)
		}
	}
}

// pluginConfig is the part of a managed plugin's config.json that we use.
type pluginConfig struct {
	Interface struct {
		Types  []string
		Socket string
	}
	Entrypoint []string
	Network    struct{ Type string }
	Linux      struct {
		Capabilities    []string
		AllowAllDevices bool
	}
	PropagatedMount string
	Mounts          []struct {
		Name, Source, Destination, Type string
		Options, Settable               []string
	}
	Env []struct {
		Name     string
		Value    *string
		Settable []string
	}
}

func readPlugin(t *testing.T) pluginConfig {
	t.Helper()
	b, err := os.ReadFile("../plugin.json")
	if err != nil {
		t.Fatal(err)
	}
	var c pluginConfig
	if err := json.Unmarshal(b, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestPluginIsBothDrivers in the host's network, and may do its work.
func TestPluginIsBothDrivers(t *testing.T) {
	t.Parallel()
	c := readPlugin(t)
	for _, want := range []string{"docker.networkdriver/1.0", "docker.ipamdriver/1.0"} {
		if !slices.Contains(c.Interface.Types, want) {
			t.Errorf("types %v lack %s", c.Interface.Types, want)
		}
	}
	if filepath.Base(socket) != c.Interface.Socket || !slices.Contains(c.Entrypoint, "--plugin-socket="+socket) {
		t.Errorf("the engine waits for %s, the agent is started with %v", c.Interface.Socket, c.Entrypoint)
	}
	if c.Network.Type != "host" {
		t.Errorf("network %q: links would be made where the engine does not look", c.Network.Type)
	}
	if want := []string{"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_SYS_ADMIN"}; !slices.Equal(c.Linux.Capabilities, want) || c.Linux.AllowAllDevices {
		t.Errorf("capabilities %v, want %v and no devices", c.Linux.Capabilities, want)
	}
}

// TestPluginLeavesItsWorkOnTheHost: namespaces outlive the plugin's process only
// if its mounts reach the host, which takes a shared mount in a root that is
// shared; an engine makes it so for plugins with a propagated mount alone. State
// must outlive the plugin. And a source that is not there keeps an engine from
// enabling the plugin, on a fresh host or after a boot.
func TestPluginLeavesItsWorkOnTheHost(t *testing.T) {
	t.Parallel()
	c := readPlugin(t)
	if c.PropagatedMount == "" {
		t.Error("without a propagated mount nothing that the plugin mounts is seen on the host")
	}
	always := []string{"/run", "/var/lib", "/etc"} // hier(7)
	at := func(source string) string {
		for _, m := range c.Mounts {
			if m.Source == source {
				return m.Destination
			}
		}
		t.Fatalf("%s is not mounted", source)
		return ""
	}
	for _, m := range c.Mounts {
		if !slices.Contains(always, m.Source) {
			t.Errorf("%s may not exist when the plugin is enabled", m.Source)
		}
		if len(m.Settable) > 0 {
			// docker plugin upgrade goes back to the default and goes on showing
			// the setting (seen with 20.10.24): the host's state would be elsewhere.
			t.Errorf("the source of %s can be set", m.Name)
		}
		if m.Source == "/run" && (!slices.Contains(m.Options, "rshared") || !slices.Contains(m.Options, "rbind")) {
			t.Errorf("/run is mounted %v: namespaces would stay inside the plugin", m.Options)
		}
		if m.Source == "/etc" && !slices.Contains(m.Options, "ro") {
			t.Errorf("/etc is mounted %v", m.Options)
		}
		if m.Source == "/var/lib" && slices.Contains(m.Options, "rbind") {
			t.Error("/var/lib with all that is mounted below it would pin the engine's layers")
		}
	}
	for _, want := range []string{
		"--netns-dir=" + at("/run") + "/netns",
		"--api-socket=" + at("/run") + "/carrick/carrick.sock",
		"--state-dir=" + at("/var/lib") + "/carrick",
	} {
		if !slices.Contains(c.Entrypoint, want) {
			t.Errorf("the agent is started with %v, not with %s", c.Entrypoint, want)
		}
	}
}

// TestPluginSettings are the agent's flags, each with a value that the agent
// takes: an engine passes a setting that nobody set as an empty variable.
func TestPluginSettings(t *testing.T) {
	t.Parallel()
	src, err := os.ReadFile("../cmd/carrick/agent.go")
	if err != nil {
		t.Fatal(err)
	}
	flags := make(map[string]bool) // has an empty default
	for _, m := range regexp.MustCompile(`f\.\w+\("([a-z-]+)", ([^\n]*)`).FindAllStringSubmatch(string(src), -1) {
		flags[m[1]] = strings.HasPrefix(m[2], `"",`)
	}
	if len(flags) < 10 {
		t.Fatalf("found only the flags %v", flags)
	}
	for _, e := range readPlugin(t).Env {
		if !slices.Contains(e.Settable, "value") || e.Value == nil {
			t.Errorf("%s cannot be set", e.Name)
			continue
		}
		name, ours := strings.CutPrefix(e.Name, "CARRICK_")
		if !ours {
			if e.Name != "CONSUL_HTTP_TOKEN" {
				t.Errorf("nobody reads %s", e.Name)
			}
			continue
		}
		flag := strings.ReplaceAll(strings.ToLower(name), "_", "-")
		emptyDefault, ok := flags[flag]
		switch {
		case !ok:
			t.Errorf("%s: there is no flag --%s", e.Name, flag)
		case *e.Value == "" && !emptyDefault:
			t.Errorf("%s is empty, and --%s has another default", e.Name, flag)
		}
	}
}
