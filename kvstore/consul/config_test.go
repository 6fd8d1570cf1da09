package consul_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/carrick-net/carrick/kvstore/consul"
)

func TestParseURL(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]consul.Config{
		"consul://127.0.0.1:8500/carrick":        {Addresses: []string{"127.0.0.1:8500"}, Prefix: "carrick"},
		"consul://127.0.0.1:8500/carrick/":       {Addresses: []string{"127.0.0.1:8500"}, Prefix: "carrick"},
		"consul://localhost":                     {Addresses: []string{"localhost:8500"}},
		"consul://localhost/":                    {Addresses: []string{"localhost:8500"}},
		"consul://[::1]:8500/a/b":                {Addresses: []string{"[::1]:8500"}, Prefix: "a/b"},
		"consul://[fd00::1]/a":                   {Addresses: []string{"[fd00::1]:8500"}, Prefix: "a"},
		"consul://a:8500,b,[::1]:1/p":            {Addresses: []string{"a:8500", "b:8500", "[::1]:1"}, Prefix: "p"},
		"consul://a/with%20space":                {Addresses: []string{"a:8500"}, Prefix: "with space"},
		"consul://a/p?dc=east&token-file=/run/t": {Addresses: []string{"a:8500"}, Prefix: "p", Datacenter: "east", TokenFile: "/run/t"},
		"consul://a/p?tls=false":                 {Addresses: []string{"a:8500"}, Prefix: "p"},
		"consul://a,b:1/p?tls=true&ca=/ca&cert=/c&key=/k&server-name=n": {
			Addresses: []string{"a:8501", "b:1"}, Prefix: "p",
			TLS: consul.TLS{Enable: true, CAFile: "/ca", CertFile: "/c", KeyFile: "/k", ServerName: "n"},
		},
	} {
		got, err := consul.ParseURL(in)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v; want %+v", in, got, err, want)
		}
	}
}

// Each refusal says what is wrong, and none repeats a secret.
func TestParseURLRefuses(t *testing.T) {
	t.Parallel()
	const secret = "5ec7e7-0f-5ec7e7"
	for in, says := range map[string]string{
		"":                                       "consul://",
		"http://a:8500/p":                        "consul://",
		"consul://":                              "host:port",
		"consul:///p":                            "host:port",
		"consul://a:8500,/p":                     "host:port",
		"consul://a:http/p":                      "port",
		"consul://a:0/p":                         "port",
		"consul://a:65536/p":                     "port",
		"consul://a:1:2/p":                       "host:port",
		"consul://::1/p":                         "host:port",
		"consul://a b/p":                         "host:port",
		"consul://a,a/p":                         "twice",
		"consul://a//p":                          "prefix",
		"consul://a/p//q":                        "prefix",
		"consul://a/../p":                        "prefix",
		"consul://a/%zz":                         "prefix",
		"consul://a/p%0a":                        "prefix",
		"consul://a/" + strings.Repeat("x", 200): "prefix",
		"consul://a/p#f":                         "fragment",
		"consul://a/p?tls=maybe":                 "true or false",
		"consul://a/p?dc=a&dc=b":                 "twice",
		"consul://a/p?ssl=true":                  "ssl",
		"consul://u:" + secret + "@a/p":          "CONSUL_HTTP_TOKEN",
		"consul://" + secret + "@a:8500":         "CONSUL_HTTP_TOKEN",
		"consul://a/p?token=" + secret:           "CONSUL_HTTP_TOKEN",
		"consul://a/p?TOKEN=" + secret:           "CONSUL_HTTP_TOKEN",
		"consul://a/p?acl_token=" + secret:       "CONSUL_HTTP_TOKEN",
		"consul://a/p?" + secret:                 "unknown option",
		"consul://a/p?%zz=" + secret:             "key=value",
	} {
		c, err := consul.ParseURL(in)
		switch {
		case err == nil:
			t.Errorf("%s is accepted: %+v", in, c)
		case !strings.Contains(err.Error(), says):
			t.Errorf("%s: %q does not say %q", in, err, says)
		case strings.Contains(err.Error(), secret):
			t.Errorf("%s: %q repeats the secret", in, err)
		}
	}
}

// What is parsed can be opened, and its name leads back to it.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{"consul://127.0.0.1:8500/carrick", "consul://a,[::1]:2/p?tls=true&ca=x", "consul://u:p@h/", "consul://a/%2e%2e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		c, err := consul.ParseURL(in)
		if err != nil {
			return
		}
		c.TLS, c.TokenFile = consul.TLS{}, "" // files that are not there
		c.Getenv = func(string) string { return "" }
		s, err := consul.Open(c)
		if err != nil {
			t.Fatalf("%q is parsed and not opened: %v", in, err)
		}
		defer s.Close()
		if strings.Contains(s.String(), " ") || strings.Contains(s.String(), "?") {
			return // prints for people: not escaped
		}
		if _, err := consul.ParseURL(s.String()); err != nil {
			t.Fatalf("%q is called %q: %v", in, s, err)
		}
	})
}

// Opening needs the configuration to be right, and no server.
func TestOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	token := file("token", "abc\n")
	for _, c := range []struct {
		name string
		cfg  consul.Config
		env  map[string]string
		fail string
	}{
		{"nobody there", consul.Config{}, nil, ""},
		{"a token file", consul.Config{TokenFile: token}, nil, ""},
		{"a token file of the environment", consul.Config{}, map[string]string{"CONSUL_HTTP_TOKEN_FILE": token}, ""},
		{"a token of the environment", consul.Config{}, map[string]string{"CONSUL_HTTP_TOKEN": "abc"}, ""},
		{"a token file that is not there", consul.Config{TokenFile: filepath.Join(dir, "none")}, nil, "none"},
		{"an empty token file", consul.Config{TokenFile: file("empty", " \n")}, nil, "empty"},
		{"a token file with two", consul.Config{TokenFile: file("two", "abc def\n")}, nil, "two"},
		{"TLS of the system", consul.Config{TLS: consul.TLS{Enable: true}}, nil, ""},
		{"TLS of the environment, without its file", consul.Config{}, map[string]string{"CONSUL_HTTP_SSL": "true", "CONSUL_CACERT": filepath.Join(dir, "no-ca")}, "no-ca"},
		{"TLS neither on nor off", consul.Config{}, map[string]string{"CONSUL_HTTP_SSL": "perhaps"}, "CONSUL_HTTP_SSL"},
		{"a certificate without its key", consul.Config{TLS: consul.TLS{Enable: true, CertFile: token}}, nil, "key"},
		{"a prefix of another form", consul.Config{Prefix: "/a"}, nil, "prefix"},
		{"a wait out of range", consul.Config{Wait: 1 << 50}, nil, "wait"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.cfg.Addresses = []string{"127.0.0.1:1"}
			c.cfg.Getenv = func(k string) string { return c.env[k] }
			s, err := consul.Open(c.cfg)
			if err == nil {
				defer s.Close()
			}
			if (err == nil) != (c.fail == "") || err != nil && !strings.Contains(err.Error(), c.fail) {
				t.Errorf("got %v, want an error with %q", err, c.fail)
			}
		})
	}
	if _, err := consul.Open(consul.Config{}); err == nil {
		t.Error("no address is accepted")
	}
}

// However a configuration is printed, its token is not.
func TestSecretIsNotPrinted(t *testing.T) {
	t.Parallel()
	const secret = "5ec7e7"
	cfg := consul.Config{Addresses: []string{"a:1"}, Token: secret}
	var b strings.Builder
	fmt.Fprintf(&b, "%v %+v %#v %s %q", cfg, cfg, cfg, cfg.Token, cfg.Token)
	slog.New(slog.NewTextHandler(&b, nil)).Info("x", "token", cfg.Token, "config", cfg)
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", "token", cfg.Token)
	j, err := json.Marshal(cfg.Token)
	if err != nil {
		t.Fatal(err)
	}
	b.Write(j)
	b.WriteString(client(t, cfg).String())
	if strings.Contains(b.String(), secret) {
		t.Errorf("printed: %s", b.String())
	}
}
