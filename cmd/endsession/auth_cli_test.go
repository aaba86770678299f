package main

import (
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
	"github.com/endsession/endsession/server/config"
)

// TestKeyNew: what is printed for the configuration lets the key in that was printed with it.
func TestKeyNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "helpdesk.key")
	for _, args := range [][]string{
		{"key", "new", "--name", "helpdesk"},
		{"key", "new", "--name", "helpdesk", "--not-after", "2100-01-31"},
		{"key", "new", "--name", "helpdesk", "--key-file", path},
	} {
		r := cli{}.run(t, args...)
		if r.status != exitSucceeded {
			t.Fatalf("%v: exit status %d: %s", args, r.status, r.err)
		}
		key := regexp.MustCompile(`esk_\S+`).FindString(r.out)
		if len(args) == 6 && args[4] == "--key-file" {
			b, err := os.ReadFile(path)
			info, statErr := os.Stat(path)
			if err != nil || statErr != nil || info.Mode().Perm() != 0o600 || key != "" {
				t.Errorf("%v: %v, %v, mode %v, printed %q", args, err, statErr, info.Mode(), key)
			}
			key = strings.TrimSpace(string(b))
		}
		entry := regexp.MustCompile(`(?m)^#.*\n`).ReplaceAllString(r.out, "")
		conf, err := config.Parse("x.yaml", []byte("auth:\n  api_keys:\n"+regexp.MustCompile(`(?m)^`).ReplaceAllString(strings.TrimSpace(entry), "    ")+
			"\ntargets: [{name: a, kibana: {url: 'https://x', api_key: 'a:b'}}]\n"), registry(), config.Environment{})
		if err != nil {
			t.Fatalf("%v: %v\n%s", args, err, r.out)
		}
		k := conf.Auth.APIKeys[0]
		hash := config.KeyHash(auth.HashKey(key))
		if _, ok := auth.KeyID(key); !ok || k.Name != "helpdesk" || len(k.SHA256) == 1 && k.SHA256[0] != hash || len(k.Keys) == 1 && k.Keys[0].SHA256 != hash || len(k.SHA256)+len(k.Keys) != 1 {
			t.Errorf("%v: key %q, configured %+v", args, key, k)
		}
	}
	for _, args := range [][]string{
		{"key", "new"}, {"key", "new", "--name", ""}, {"key", "new", "--name", " x"}, {"key", "new", "--name", "x", "--not-after", "soon"},
		{"key", "new", "--name", "x", "--not-after", "2001-01-01"},
	} {
		if r := (cli{}).run(t, args...); r.status != exitUsage || strings.Contains(r.out, "esk_") {
			t.Errorf("%v: exit status %d: %s", args, r.status, r.out)
		}
	}
	if r := (cli{}).run(t, "key", "new", "--name", "x", "--key-file", path); r.status != exitFailed {
		t.Errorf("a key file is written over: exit status %d", r.status)
	}
}

// TestClientCredentials: the ways in which commands prove who they are.
func TestClientCredentials(t *testing.T) {
	g := startGuarded(t)
	dir := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cert, key, err := authtest.Encode(*certified(t, g.ca, "cert-hr"))
	if err != nil {
		t.Fatal(err)
	}
	token := g.token(t, authtest.Client{Subject: "svc-hr", Audience: []string{"endsession"}})
	ca, keyFile := write("ca.pem", g.ca.PEM), write("helpdesk.key", []byte(g.keys["helpdesk"]+"\n"))
	tokenFile, certFile, certKey := write("token", []byte(token)), write("crt", cert), write("key", key)
	empty, two := write("empty", nil), write("two", []byte("a b"))
	for _, test := range []struct {
		name   string
		env    map[string]string
		args   []string
		status int
		says   string
	}{
		{"KeyFile", nil, []string{"--api-key-file", keyFile}, exitSucceeded, ""},
		{"KeyFileByVariable", map[string]string{"ENDSESSION_API_KEY_FILE": keyFile}, nil, exitSucceeded, ""},
		{"KeyByVariable", map[string]string{"ENDSESSION_API_KEY": g.keys["helpdesk"]}, nil, exitSucceeded, ""},
		{"TokenFile", nil, []string{"--token-file", tokenFile}, exitSucceeded, ""},
		{"TokenByVariable", map[string]string{"ENDSESSION_TOKEN": token}, nil, exitSucceeded, ""},
		{"Certificate", nil, []string{"--tls-cert-file", certFile, "--tls-key-file", certKey}, exitSucceeded, ""},
		{"OtherServerName", nil, []string{"--tls-server-name", "localhost", "--api-key-file", keyFile}, exitSucceeded, ""},
		{"WrongServerName", nil, []string{"--tls-server-name", "gateway.example", "--api-key-file", keyFile}, exitNotAccepted, "gateway.example"},
		{"Nothing", nil, nil, exitNotAccepted, "no valid credential came with the call (Unauthenticated)"},
		{"ExpiredKey", map[string]string{"ENDSESSION_API_KEY": g.keys["expired"]}, nil, exitNotAccepted, "(Unauthenticated)"},
		{"NoRight", map[string]string{"ENDSESSION_API_KEY": g.keys["nobody"]}, nil, exitNotAccepted, "(PermissionDenied)"},
		{"Both", map[string]string{"ENDSESSION_API_KEY": g.keys["helpdesk"]}, []string{"--token-file", tokenFile}, exitUsage, "want one"},
		{"MissingFile", nil, []string{"--api-key-file", filepath.Join(dir, "none")}, exitUsage, "no such file"},
		{"EmptyFile", nil, []string{"--api-key-file", empty}, exitUsage, "want one word"},
		{"EmptyFlag", nil, []string{"--api-key-file", ""}, exitUsage, "must not be empty"},
		{"TwoWords", nil, []string{"--token-file", two}, exitUsage, "want one word"},
	} {
		t.Run(test.name, func(t *testing.T) {
			args := append([]string{"targets", "list", "--server", g.srv.GRPCAddr().String(), "--tls-ca-file", ca}, test.args...)
			r := cli{env: test.env}.run(t, args...)
			if r.status != test.status || !strings.Contains(r.err, test.says) {
				t.Errorf("exit status %d, want %d: %s", r.status, test.status, r.err)
			}
			for _, secret := range []string{g.keys["helpdesk"], g.keys["nobody"], token} {
				if strings.Contains(r.out+r.err, secret) {
					t.Errorf("the secret is shown: %s%s", r.out, r.err)
				}
			}
		})
	}
}

// TestCredentialsAreNotSentInPlainText: beyond loopback every connection is encrypted, or there is none.
func TestCredentialsAreNotSentInPlainText(t *testing.T) {
	l, err := net.Listen("tcp", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	seen := make(chan []byte, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		b := make([]byte, 64)
		n, _ := conn.Read(b)
		seen <- b[:n]
		_ = conn.Close()
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	key := auth.NewKey()
	r := cli{env: map[string]string{"ENDSESSION_API_KEY": key}}.run(t, "targets", "list", "--server", "0.0.0.0:"+port)
	first := <-seen
	if r.status == exitSucceeded || len(first) == 0 || first[0] != 22 { // a TLS handshake record
		t.Errorf("exit status %d; the first bytes were %q", r.status, first)
	}
}

// TestReloadOnSIGHUP: keys and certificates change, connections and calls go on, and what is wrong changes nothing.
func TestReloadOnSIGHUP(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, err := authtest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	put := func(name string, content []byte) {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	issue := func() {
		c, err := ca.Server()
		if err != nil {
			t.Fatal(err)
		}
		cert, key, err := authtest.Encode(c)
		if err != nil {
			t.Fatal(err)
		}
		put("tls.crt", cert)
		put("tls.key", key)
	}
	issue()
	old, next := auth.NewKey(), auth.NewKey()
	configure := func(key, more string) {
		hash := auth.HashKey(key)
		put("endsession.yaml", []byte(fmt.Sprintf(`
listen: { grpc: "127.0.0.1:0", http: "127.0.0.1:0", admin: "127.0.0.1:0", tls: { cert_file: tls.crt, key_file: tls.key } }
auth: { api_keys: [{ name: helpdesk, sha256: [%q] }] }
policy: [{ name: all, allow: 'true', rights: [list_targets] }]
check_interval: never
targets: [{ name: a, kibana: { url: "https://127.0.0.1:1", api_key: "${env:KIBANA_API_KEY}" } }]
%s`, hex.EncodeToString(hash[:]), more)))
	}
	configure(old, "")
	p := serve(t, filepath.Join(dir, "endsession.yaml"))
	address := strings.TrimPrefix(p.http, "http://")
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	defer transport.CloseIdleConnections()
	var certificates []string
	status := func(key string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+address+"/v1/targets", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+key)
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		certificates = append(certificates, resp.TLS.PeerCertificates[0].SerialNumber.String())
		return resp.StatusCode
	}
	reload := func(says string) {
		t.Helper()
		before := strings.Count(p.log.String(), says)
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the log says: "+says, func() bool { return strings.Count(p.log.String(), says) > before })
	}
	if a, b := status(old), status(next); a != 200 || b != 401 {
		t.Fatalf("at first: the old key %d, the new one %d", a, b)
	}
	configure(next, "nonsense: true")
	reload("the old one stays in use")
	if a, b := status(old), status(next); a != 200 || b != 401 {
		t.Errorf("after a reload that cannot be: the old key %d, the new one %d", a, b)
	}
	configure(next, "")
	issue()
	reload("reloaded the configuration")
	if a, b := status(old), status(next); a != 401 || b != 200 {
		t.Errorf("after the reload: the old key %d, the new one %d", a, b)
	}
	if first, last := certificates[0], certificates[len(certificates)-1]; first != last {
		t.Error("the connection was dropped")
	}
	transport.CloseIdleConnections()
	if status(next); certificates[0] == certificates[len(certificates)-1] {
		t.Error("a new connection gets the old certificate")
	}
	// Taking authentication away is no reload.
	put("endsession.yaml", []byte("listen: { tls: { cert_file: tls.crt, key_file: tls.key } }\ncheck_interval: never\n"+
		"targets: [{ name: a, kibana: { url: 'https://127.0.0.1:1', api_key: '${env:KIBANA_API_KEY}' } }]\n"))
	reload("auth cannot be added or taken away without a restart")
	if a := status("x"); a != 401 {
		t.Errorf("without a section auth: got %d", a)
	}
}

// TestAuthenticationPage loads the configurations that the page about authentication shows.
func TestAuthenticationPage(t *testing.T) {
	hash := strings.Repeat("ab", 32)
	n := 0
	for i, block := range blocks(t, "../../docs/authentication.md", "yaml") {
		text := block + "targets: [{name: a, kibana: {url: 'https://x', api_key: 'a:b'}}]\n"
		if !strings.Contains(block, "listen:") && strings.Contains(block, "mtls") {
			t.Errorf("block %d: mtls without listen.tls", i)
		}
		for strings.Contains(text, "9f86d081…") {
			text = strings.Replace(text, "9f86d081…", fmt.Sprintf("%02x%s", n, hash[2:]), 1)
			n++
		}
		if _, err := config.Parse("endsession.yaml", []byte(text), registry(), config.Environment{}); err != nil {
			t.Errorf("block %d: %v\n%s", i, err, block)
		}
	}
	if n == 0 {
		t.Error("the page shows no keys any more")
	}
}
