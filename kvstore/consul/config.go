package consul

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/carrick-net/carrick/kvstore"
)

// Defaults of a [Config].
const (
	DefaultPrefix  = "carrick"
	DefaultTimeout = 5 * time.Second
	DefaultWait    = 30 * time.Second
)

// maxPrefix leaves a full transaction within Consul's body limit: the prefix is
// repeated for each of its operations.
const maxPrefix = 128

// Secret is a string that prints as asterisks, so that no log has it.
type Secret string

func (Secret) String() string               { return "***" }
func (Secret) GoString() string             { return "***" }
func (Secret) MarshalText() ([]byte, error) { return []byte("***"), nil }
func (Secret) LogValue() slog.Value         { return slog.StringValue("***") }

// Config says where Consul is and how to talk to it. The zero value of each
// field but Addresses has a meaning.
type Config struct {
	// Addresses are host:port of one or more servers or client agents of one
	// Consul cluster. One is used until it fails, then the next.
	Addresses []string
	// Prefix is what all keys are stored below, without slashes at its ends.
	// Default [DefaultPrefix].
	Prefix string
	// Datacenter is Consul's; default that of the server asked.
	Datacenter string

	// Token is the ACL token. It is better given as TokenFile, which is read
	// again whenever it changes. Default CONSUL_HTTP_TOKEN_FILE, then
	// CONSUL_HTTP_TOKEN. Never part of a URL, an error or a log.
	Token     Secret
	TokenFile string

	// TLS is how to secure the connection. What is unset comes from Consul's own
	// variables: CONSUL_HTTP_SSL, CONSUL_CACERT, CONSUL_CAPATH,
	// CONSUL_CLIENT_CERT, CONSUL_CLIENT_KEY, CONSUL_TLS_SERVER_NAME and
	// CONSUL_HTTP_SSL_VERIFY.
	TLS TLS

	// Timeout bounds every call but the wait of a Watch; after it the store is
	// unavailable. Default [DefaultTimeout].
	Timeout time.Duration
	// Wait bounds a Watch that sees no change, at most 10 minutes. Consul keeps
	// counting the connections of an agent that was killed for as long. Default
	// [DefaultWait].
	Wait time.Duration

	// Logger hears of failovers and lost leases. Default none.
	Logger *slog.Logger
	// Getenv reads the environment. Default os.Getenv.
	Getenv func(string) string
}

// TLS configures HTTPS.
type TLS struct {
	Enable     bool
	CAFile     string // PEM; default the system's
	CAPath     string // a directory of PEM files
	CertFile   string // of the client, with KeyFile
	KeyFile    string
	ServerName string // expected in the server's certificate; default the address's host
	Insecure   bool   // do not verify the server's certificate
}

// urlForm is what every complaint about a URL ends with.
const urlForm = "want consul://host:port[,host:port...]/prefix"

// ParseURL reads a store URL:
//
//	consul://127.0.0.1:8500/carrick
//	consul://a.example:8501,b.example:8501/carrick?tls=true&ca=/etc/ca.pem
//
// The port is 8500, or 8501 with TLS, if not given. Options: dc, token-file, tls
// (true or false), ca, cert, key, server-name. A token is refused: URLs end up
// in process lists and logs. No error repeats what could be one.
func ParseURL(s string) (Config, error) {
	rest, ok := strings.CutPrefix(s, "consul://")
	if !ok {
		return Config{}, errors.New("store URL does not begin with consul://: " + urlForm)
	}
	if strings.Contains(rest, "#") {
		return Config{}, errors.New("store URL has a fragment (#): " + urlForm)
	}
	rest, query, _ := strings.Cut(rest, "?")
	hosts, prefix, _ := strings.Cut(rest, "/")
	if strings.Contains(hosts, "@") {
		return Config{}, errors.New("store URL has a user or password: a Consul token is given in CONSUL_HTTP_TOKEN or a file (?token-file=PATH), never in a URL")
	}
	var c Config
	if err := c.parseOptions(query); err != nil {
		return Config{}, err
	}
	var err error
	if c.Prefix, err = url.PathUnescape(strings.TrimSuffix(prefix, "/")); err != nil {
		return Config{}, fmt.Errorf("store URL: prefix: %w", err)
	}
	port := "8500"
	if c.TLS.Enable {
		port = "8501"
	}
	for h := range strings.SplitSeq(hosts, ",") {
		addr, err := parseAddress(h, port)
		if err != nil {
			return Config{}, fmt.Errorf("store URL: %w: %s", err, urlForm)
		}
		c.Addresses = append(c.Addresses, addr)
	}
	return c, c.check()
}

func (c *Config) parseOptions(query string) error {
	opts, err := url.ParseQuery(query)
	if err != nil {
		return errors.New("store URL: its options after ? are not key=value pairs")
	}
	for name, values := range opts {
		if strings.Contains(strings.ToLower(name), "token") && name != "token-file" {
			return fmt.Errorf("store URL: option %q: a Consul token is given in CONSUL_HTTP_TOKEN or a file (token-file=PATH), never in a URL", name)
		}
		if len(values) != 1 {
			return fmt.Errorf("store URL: option %q is given twice", name)
		}
		v := values[0]
		switch name {
		case "dc":
			c.Datacenter = v
		case "token-file":
			c.TokenFile = v
		case "tls":
			if c.TLS.Enable, err = strconv.ParseBool(v); err != nil {
				return fmt.Errorf("store URL: tls=%q: want true or false", v)
			}
		case "ca":
			c.TLS.CAFile = v
		case "cert":
			c.TLS.CertFile = v
		case "key":
			c.TLS.KeyFile = v
		case "server-name":
			c.TLS.ServerName = v
		default:
			if len(name) > 12 {
				name = "(long)" // may be anything, also a secret
			}
			return fmt.Errorf("store URL: unknown option %q: want dc, token-file, tls, ca, cert, key or server-name", name)
		}
	}
	return nil
}

// parseAddress completes host, host:port, [v6] or [v6]:port with a port.
func parseAddress(s, defaultPort string) (string, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port, err = net.SplitHostPort(s + ":" + defaultPort)
	}
	if err != nil || host == "" || strings.ContainsAny(host, " /\\?#@%") {
		return "", fmt.Errorf("%q is not a host:port", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port from 1 to 65535", s)
	}
	return net.JoinHostPort(host, port), nil
}

// check refuses what cannot work.
func (c *Config) check() error {
	if len(c.Addresses) == 0 {
		return errors.New("consul: no address")
	}
	for i, a := range c.Addresses {
		if slices.Contains(c.Addresses[:i], a) {
			return fmt.Errorf("consul: address %s is given twice", a)
		}
	}
	if len(c.Prefix) > maxPrefix {
		return fmt.Errorf("consul: prefix of %d bytes (at most %d)", len(c.Prefix), maxPrefix)
	}
	if c.Prefix != "" {
		if err := kvstore.CheckKey(c.Prefix); err != nil {
			return fmt.Errorf("consul: prefix: %w", err)
		}
	}
	if c.Wait < 0 || c.Wait > 10*time.Minute || c.Timeout < 0 {
		return fmt.Errorf("consul: wait %s (at most 10m) or timeout %s is out of range", c.Wait, c.Timeout)
	}
	return nil
}

// complete fills in the environment and the defaults.
func (c Config) complete() (Config, error) {
	if err := c.check(); err != nil {
		return Config{}, err
	}
	if c.Getenv == nil {
		c.Getenv = os.Getenv
	}
	if c.TokenFile == "" && c.Token == "" {
		if c.TokenFile = c.Getenv("CONSUL_HTTP_TOKEN_FILE"); c.TokenFile == "" {
			c.Token = Secret(c.Getenv("CONSUL_HTTP_TOKEN"))
		}
	}
	if err := c.TLS.complete(c.Getenv); err != nil {
		return Config{}, err
	}
	setDefault(&c.Prefix, DefaultPrefix)
	setDefault(&c.Timeout, DefaultTimeout)
	setDefault(&c.Wait, DefaultWait)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func (t *TLS) complete(getenv func(string) string) error {
	for _, v := range []struct {
		name string
		to   *bool
		not  bool
	}{{"CONSUL_HTTP_SSL", &t.Enable, false}, {"CONSUL_HTTP_SSL_VERIFY", &t.Insecure, true}} {
		text := getenv(v.name)
		if text == "" || *v.to {
			continue
		}
		b, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("consul: %s=%q: want true or false", v.name, text)
		}
		*v.to = b != v.not
	}
	setDefault(&t.CAFile, getenv("CONSUL_CACERT"))
	setDefault(&t.CAPath, getenv("CONSUL_CAPATH"))
	setDefault(&t.CertFile, getenv("CONSUL_CLIENT_CERT"))
	setDefault(&t.KeyFile, getenv("CONSUL_CLIENT_KEY"))
	setDefault(&t.ServerName, getenv("CONSUL_TLS_SERVER_NAME"))
	return nil
}

func setDefault[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}
