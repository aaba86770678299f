package httpclient_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/httpclient"
)

// certificate makes a certificate, signed by an authority or by itself.
func certificate(t *testing.T, parent *tls.Certificate, change func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: emulator.Canary},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	change(c)
	signer, signerKey := c, key
	if parent != nil {
		signer, signerKey = parent.Leaf, parent.PrivateKey.(*ecdsa.PrivateKey)
	}
	der, err := x509.CreateCertificate(rand.Reader, c, signer, &key.PublicKey, signerKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func fingerprint(c tls.Certificate) string {
	sum := sha256.Sum256(c.Certificate[0])
	return hex.EncodeToString(sum[:])
}

// TestCheckConnection goes over real connections.
func TestCheckConnection(t *testing.T) {
	days := func(n int) time.Time { return time.Now().Add(time.Duration(n)*24*time.Hour + time.Hour) }
	authority := certificate(t, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.Subject.CommonName = true, x509.KeyUsageCertSign, "authority"
	})
	ending := certificate(t, nil, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.Subject.CommonName, c.NotAfter = true, x509.KeyUsageCertSign, "ending authority", days(10)
	})
	ca := func(c tls.Certificate) string {
		path := filepath.Join(t.TempDir(), "ca.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Certificate[0]}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	keep := func(*x509.Certificate) {}
	for _, test := range []struct {
		name   string
		parent *tls.Certificate
		leaf   func(*x509.Certificate)
		// trust says whom, given the server's certificate; nil: the authority.
		trust   func(leaf tls.Certificate) httpclient.TLSConfig
		status  adapters.CheckStatus
		message string
		// remedy is what it must say; FINGERPRINT stands for that of the certificate.
		remedy string
	}{
		{name: "Trusted", parent: &authority, leaf: keep, status: adapters.CheckOK, message: "TLS 1.3, and the certificate is trusted"},
		{name: "Pinned", leaf: keep, trust: func(c tls.Certificate) httpclient.TLSConfig { return httpclient.TLSConfig{PinSHA256: fingerprint(c)} },
			status: adapters.CheckOK, message: "TLS 1.3, and the certificate is the pinned one"},
		{name: "EndsSoon", parent: &authority, leaf: func(c *x509.Certificate) { c.NotAfter = days(20) },
			status: adapters.CheckWarning, message: "the certificate ends in 20 days", remedy: "renew"},
		{name: "DoesNotEndSoon", parent: &authority, leaf: func(c *x509.Certificate) { c.NotAfter = days(22) }, status: adapters.CheckOK, message: "trusted"},
		{name: "ShortLived", parent: &authority, leaf: func(c *x509.Certificate) { c.NotBefore, c.NotAfter = days(-3), days(3) },
			status: adapters.CheckOK, message: "trusted"},
		{name: "ShortLivedEndsSoon", parent: &authority, leaf: func(c *x509.Certificate) { c.NotBefore, c.NotAfter = days(-5), days(1) },
			status: adapters.CheckWarning, message: "the certificate ends in 1 days", remedy: "renew"},
		{name: "AuthorityEndsSoon", parent: &ending, leaf: keep, trust: func(tls.Certificate) httpclient.TLSConfig { return httpclient.TLSConfig{CAFile: ca(ending)} },
			status: adapters.CheckWarning, message: "the certificate of an authority above it ends in 10 days", remedy: "ca_file"},
		{name: "PinnedAndOver", leaf: func(c *x509.Certificate) { c.NotAfter = days(-2) },
			trust:  func(c tls.Certificate) httpclient.TLSConfig { return httpclient.TLSConfig{PinSHA256: fingerprint(c)} },
			status: adapters.CheckWarning, message: "the certificate ended on ", remedy: "renew"},
		{name: "SelfSigned", leaf: keep, status: adapters.CheckFailed, message: "self-signed", remedy: "or pin_sha256, once it is compared with the one on the target itself, to FINGERPRINT"},
		{name: "UnknownAuthority", parent: &ending, leaf: keep, status: adapters.CheckFailed, message: "authority that is not trusted", remedy: "set ca_file to the authority's certificate, or pin_sha256, once it is compared with the one on the target itself, to FINGERPRINT"},
		{name: "Expired", parent: &authority, leaf: func(c *x509.Certificate) { c.NotAfter = days(-2) }, status: adapters.CheckFailed, message: "the certificate is valid from ", remedy: "renew it on the target; here it is " + time.Now().UTC().Format(time.DateOnly)},
		{name: "NotYetValid", parent: &authority, leaf: func(c *x509.Certificate) { c.NotBefore = days(2) }, status: adapters.CheckFailed, message: "the certificate is valid from ", remedy: "here it is "},
		{name: "AnotherHost", parent: &authority, leaf: func(c *x509.Certificate) {
			c.IPAddresses, c.DNSNames = nil, []string{"bigiq.example", "<b>", "a.example", "b.example", "c.example", "d.example", "e.example"}
		}, status: adapters.CheckFailed, message: "the certificate is for bigiq.example, a.example, b.example, c.example, d.example and 1 more", remedy: "in url"},
		{name: "NotThePinnedOne", leaf: keep, trust: func(tls.Certificate) httpclient.TLSConfig {
			return httpclient.TLSConfig{PinSHA256: strings.Repeat("0", 64)}
		}, status: adapters.CheckFailed, message: "not the pinned one; its SHA-256 is FINGERPRINT", remedy: "pin_sha256"},
	} {
		t.Run(test.name, func(t *testing.T) {
			leaf := certificate(t, test.parent, test.leaf)
			server := httptest.NewUnstartedServer(&ok{})
			server.TLS = &tls.Config{Certificates: []tls.Certificate{leaf}}
			server.Config.ErrorLog = log.New(io.Discard, "", 0)
			server.StartTLS()
			defer server.Close()
			c := client(t, server.URL, nil, func(o *httpclient.Options) {
				o.TLS = httpclient.TLSConfig{CAFile: ca(authority)}
				if test.trust != nil {
					o.TLS = test.trust(leaf)
				}
			})
			reply, err := c.Do(t.Context(), read)
			checks, reached := c.CheckConnection("the target", reply, err)
			if reached != (test.status != adapters.CheckFailed) || len(checks) != 2 || checks[0].Name != "reachable" || checks[0].Status != adapters.CheckOK {
				t.Fatalf("reached %t: %+v, %v", reached, checks, err)
			}
			fill := strings.NewReplacer("FINGERPRINT", fingerprint(leaf))
			x := checks[1]
			if x.Name != "tls" || x.Status != test.status || !strings.Contains(x.Message, fill.Replace(test.message)) ||
				!strings.Contains(x.Remedy, fill.Replace(test.remedy)) || (x.Remedy == "") != (test.remedy == "") {
				t.Errorf("%+v,\nwant status %d, %q, %q", x, test.status, test.message, test.remedy)
			}
			silent(t, errors.New(x.Message+x.Remedy))
		})
	}
}

func TestCheckConnectionWithoutTLS(t *testing.T) {
	plain := httptest.NewServer(&ok{})
	defer plain.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := closed.Addr().String()
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	old := httptest.NewUnstartedServer(&ok{})
	old.TLS = &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10} //nolint:gosec // what must be refused
	old.Config.ErrorLog = log.New(io.Discard, "", 0)
	old.StartTLS()
	defer old.Close()
	for _, test := range []struct {
		name, url string
		want      string
		reached   bool
	}{
		{"Plain", plain.URL, "reachable=1 tls=2", true},
		{"PlainAskedForTLS", strings.Replace(plain.URL, "http:", "https:", 1), "reachable=1 tls=3", false},
		{"OldTLS", old.URL, "reachable=1 tls=3", false},
		{"Refused", "https://" + gone, "reachable=3", false},
		{"NoSuchHost", "https://nowhere.invalid", "reachable=3", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := client(t, test.url, nil, nil)
			reply, err := c.Do(t.Context(), read)
			checks, reached := c.CheckConnection("the target", reply, err)
			if got := summary(checks); got != test.want || reached != test.reached {
				t.Errorf("%s, reached %t: %+v, %v", got, reached, checks, err)
			}
			for _, x := range checks {
				if x.Status != adapters.CheckOK && x.Remedy == "" {
					t.Errorf("%+v: no remedy", x)
				}
			}
		})
	}
}

func summary(checks []adapters.Check) string {
	var words []string
	for _, c := range checks {
		words = append(words, c.Name+"="+string('0'+rune(c.Status)))
	}
	return strings.Join(words, " ")
}

// TestCheckConnectionSaysWhy a target is out of reach.
func TestCheckConnectionSaysWhy(t *testing.T) {
	for _, test := range []struct {
		cause           error
		message, remedy string
	}{
		{&net.DNSError{Err: "no such host", Name: "x"}, "host name has no address", "name servers"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "refused", "port"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}, "in time", "firewalls"},
		{errors.New(emulator.Canary), "cannot be reached", "firewalls"},
	} {
		c := client(t, "https://target.example", roundTripper(func(*http.Request) (*http.Response, error) { return nil, test.cause }), nil)
		reply, err := c.Do(t.Context(), read)
		checks, reached := c.CheckConnection("the target", reply, err)
		if reached || len(checks) != 1 || !strings.Contains(checks[0].Message, test.message) || !strings.Contains(checks[0].Remedy, test.remedy) {
			t.Errorf("%v: %+v, reached %t; want %q, %q", test.cause, checks, reached, test.message, test.remedy)
			continue
		}
		silent(t, errors.New(checks[0].Message+checks[0].Remedy))
	}
}

// TestCheckConnectionComparesClocks.
func TestCheckConnectionComparesClocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, test := range []struct {
			off  time.Duration
			want string
		}{
			{0, ""}, {2 * time.Minute, ""}, {-2 * time.Minute, ""},
			{3 * time.Minute, "the clock of the target is 3m0s ahead of the gateway's"},
			{-time.Hour, "the clock of the target is 1h0m0s behind the gateway's"},
		} {
			handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Date", time.Now().Add(test.off).UTC().Format(http.TimeFormat))
				w.WriteHeader(http.StatusUnauthorized)
			})
			c := client(t, "https://target.example", emulator.Transport(handler), nil)
			reply, err := c.Do(t.Context(), read)
			checks, reached := c.CheckConnection("the target", reply, err)
			got := ""
			if len(checks) == 2 && checks[1].Name == "clock" && checks[1].Status == adapters.CheckWarning && checks[1].Remedy != "" {
				got = checks[1].Message
			}
			if !reached || got != test.want || (len(checks) == 2) != (test.want != "") {
				t.Errorf("%v off: %+v, want %q", test.off, checks, test.want)
			}
		}
	})
}
