package auth_test

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net/url"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/server/auth"
	"github.com/endsession/endsession/server/auth/authtest"
	"github.com/endsession/endsession/server/invalidation"
)

func authority(t testing.TB) *authtest.Authority {
	t.Helper()
	ca, err := authtest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func client(t testing.TB, ca *authtest.Authority, name string, change ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	c, err := ca.Client(name, change...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func uri(t testing.TB, text string) *url.URL {
	t.Helper()
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func presenting(certificates ...tls.Certificate) auth.Credentials {
	var c auth.Credentials
	for _, x := range certificates {
		c.Certificates = append(c.Certificates, x.Leaf)
	}
	return c
}

func TestCertificateNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca := authority(t)
		set := func(f func(*x509.Certificate)) []func(*x509.Certificate) { return []func(*x509.Certificate){f} }
		for _, test := range []struct {
			name   string
			by     auth.CertificateName
			cn     string
			change []func(*x509.Certificate)
			want   string
		}{
			{"Subject", auth.NameSubject, "hr", set(func(c *x509.Certificate) { c.Subject.Organization = []string{"Corp, Inc."} }), `mtls CN=hr,O=Corp\, Inc.`},
			{"NoSubject", auth.NameSubject, "", set(func(c *x509.Certificate) { c.Subject = pkix.Name{}; c.DNSNames = []string{"x"} }), "refused: the certificate has no subject name, or several"},
			{"CN", auth.NameCN, "hr", nil, "mtls hr"},
			{"NoCN", auth.NameCN, "", set(func(c *x509.Certificate) { c.DNSNames = []string{"hr"} }), "refused: the certificate has no cn name, or several"},
			{"TwoCNs", auth.NameCN, "hr", set(func(c *x509.Certificate) {
				c.Subject.ExtraNames = []pkix.AttributeTypeAndValue{
					{Type: []int{2, 5, 4, 3}, Value: "hr"}, {Type: []int{2, 5, 4, 3}, Value: "admin"},
				}
			}), "refused: the certificate has no cn name, or several"},
			{"CNWithALineBreak", auth.NameCN, "hr\nadmin", nil, "refused: the certificate has no cn name, or several"},
			{"DNS", auth.NameDNS, "x", set(func(c *x509.Certificate) { c.DNSNames = []string{"hr.corp.example"} }), "mtls hr.corp.example"},
			{"NoDNSButCN", auth.NameDNS, "hr.corp.example", nil, "refused: the certificate has no dns name, or several"},
			{"TwoDNS", auth.NameDNS, "x", set(func(c *x509.Certificate) { c.DNSNames = []string{"hr.corp.example", "admin.corp.example"} }), "refused: the certificate has no dns name, or several"},
			{"Email", auth.NameEmail, "x", set(func(c *x509.Certificate) { c.EmailAddresses = []string{"hr@corp.example"} }), "mtls hr@corp.example"},
			{"SPIFFE", auth.NameSPIFFE, "x", set(func(c *x509.Certificate) { c.URIs = []*url.URL{uri(t, "spiffe://corp.example/hr")} }), "mtls spiffe://corp.example/hr"},
			{"TwoURIs", auth.NameSPIFFE, "x", set(func(c *x509.Certificate) {
				c.URIs = []*url.URL{uri(t, "spiffe://corp.example/hr"), uri(t, "spiffe://corp.example/admin")}
			}), "refused: the certificate has no spiffe name, or several"},
			{"OtherURI", auth.NameSPIFFE, "x", set(func(c *x509.Certificate) { c.URIs = []*url.URL{uri(t, "https://corp.example/hr")} }), "refused: the certificate has no spiffe name, or several"},
		} {
			a := authenticator(t, auth.Options{MTLS: &auth.MTLS{Name: test.by, Roots: ca.Pool}})
			if got := judge(t, a, presenting(client(t, ca, test.cn, test.change...))); got != test.want {
				t.Errorf("%s: got %q, want %q", test.name, got, test.want)
			}
		}
		a := authenticator(t, auth.Options{MTLS: &auth.MTLS{Name: auth.NameCN, Roots: ca.Pool}})
		caller, err := a.Authenticate(t.Context(), presenting(client(t, ca, "hr", func(c *x509.Certificate) {
			c.DNSNames, c.EmailAddresses, c.URIs = []string{"hr.corp.example"}, []string{"hr@corp.example"}, []*url.URL{uri(t, "spiffe://corp.example/hr")}
		})))
		if err != nil {
			t.Fatal(err)
		}
		want := &invalidation.CertificateNames{
			Subject: "CN=hr", CommonName: "hr", DNS: []string{"hr.corp.example"}, Emails: []string{"hr@corp.example"},
			URIs: []string{"spiffe://corp.example/hr"},
		}
		if !reflect.DeepEqual(caller.Facts.Certificate, want) {
			t.Errorf("got facts %+v, want %+v", caller.Facts.Certificate, want)
		}
	})
}

func TestCertificatesThatAreNotTrusted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ca, stranger := authority(t), authority(t)
		good := client(t, ca, "hr")
		expiring := client(t, ca, "hr", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(time.Hour) })
		early := client(t, ca, "hr", func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })
		forServers, err := ca.Server()
		if err != nil {
			t.Fatal(err)
		}
		roots := ca.Pool()
		a := authenticator(t, auth.Options{MTLS: &auth.MTLS{Name: auth.NameCN, Roots: func() *x509.CertPool { return roots }}})
		const untrusted = "refused: certificate not trusted"
		check := func(when string, wants map[string]string) {
			t.Helper()
			for name, c := range map[string]tls.Certificate{
				"Good": good, "Expiring": expiring, "Early": early, "ForServers": forServers, "Strangers": client(t, stranger, "hr"),
			} {
				// Twice: what is remembered must not be more lenient.
				for range 2 {
					if got := judge(t, a, presenting(c)); got != wants[name] {
						t.Errorf("%s, %s: got %q, want %q", when, name, got, wants[name])
					}
				}
			}
		}
		check("at first", map[string]string{"Good": "mtls hr", "Expiring": "mtls hr", "Early": untrusted, "ForServers": untrusted, "Strangers": untrusted})
		time.Sleep(time.Hour + time.Second)
		check("later", map[string]string{"Good": "mtls hr", "Expiring": untrusted, "Early": "mtls hr", "ForServers": untrusted, "Strangers": untrusted})
		roots = stranger.Pool()
		check("under another authority", map[string]string{"Good": untrusted, "Expiring": untrusted, "Early": untrusted, "ForServers": untrusted, "Strangers": "mtls hr"})
		roots = nil
		check("under none", map[string]string{"Good": untrusted, "Expiring": untrusted, "Early": untrusted, "ForServers": untrusted, "Strangers": untrusted})

		// Chains are judged whole: a good certificate behind the client's own proves nothing.
		roots = ca.Pool()
		if got := judge(t, a, presenting(client(t, stranger, "admin"), good)); got != untrusted {
			t.Errorf("a stranger who shows somebody else's certificate, too: got %q", got)
		}
	})
}

// TestTokenAndCertificate: both must be good, and the token names the caller.
func TestTokenAndCertificate(t *testing.T) {
	ca, stranger, key := authority(t), authority(t), auth.NewKey()
	keys := []auth.Key{{Name: "helpdesk", SHA256: auth.HashKey(key)}}
	both := authenticator(t, auth.Options{Keys: keys, MTLS: &auth.MTLS{Name: auth.NameCN, Roots: ca.Pool}})
	without := authenticator(t, auth.Options{Keys: keys})
	good, bad := client(t, ca, "hr"), client(t, stranger, "hr")
	with := func(key string, c tls.Certificate) auth.Credentials {
		return auth.Credentials{Authorization: []string{"Bearer " + key}, Certificates: []*x509.Certificate{c.Leaf}}
	}
	for _, test := range []struct {
		name string
		a    *auth.Authenticator
		c    auth.Credentials
		want string
	}{
		{"Both", both, with(key, good), "api_key helpdesk"},
		{"BadKey", both, with(auth.NewKey(), good), "refused: unknown key"},
		{"BadCertificate", both, with(key, bad), "refused: certificate not trusted"},
		{"NotAskedFor", without, with(key, bad), "api_key helpdesk"},
		{"NotAskedForAndAlone", without, presenting(good), "refused: no credential"},
	} {
		if got := judge(t, test.a, test.c); got != test.want {
			t.Errorf("%s: got %q, want %q", test.name, got, test.want)
		}
	}
}
