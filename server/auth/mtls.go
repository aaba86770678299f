package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"sync"
	"time"

	"github.com/endsession/endsession/server/invalidation"
)

// CertificateName says which part of a client certificate names the caller.
type CertificateName string

// The parts of a certificate that can name a caller. Of each there must be exactly one: a certificate with two DNS names
// would be two callers.
const (
	// NameSubject is the whole distinguished name, as RFC 2253 writes it.
	NameSubject CertificateName = "subject"
	// NameCN is the subject's common name.
	NameCN CertificateName = "cn"
	// NameDNS, NameEmail and NameSPIFFE are subject alternative names; a SPIFFE id must be the only URI.
	NameDNS    CertificateName = "dns"
	NameEmail  CertificateName = "email"
	NameSPIFFE CertificateName = "spiffe"
)

// MTLS is authentication by client certificates.
type MTLS struct {
	Name CertificateName
	// Roots returns the authorities of the moment. A call is judged by these, whatever was trusted when its connection
	// began.
	Roots func() *x509.CertPool
}

// mutual judges client certificates.
type mutual struct {
	MTLS

	mu sync.Mutex
	// verified remembers until when chains are good, under the authorities in roots: verifying costs more than
	// everything else that is done for a call.
	verified map[[sha256.Size]byte]time.Time
	roots    *x509.CertPool
}

// maxVerified bounds how many chains are remembered.
const maxVerified = 4096

func newMutual(m MTLS) *mutual {
	return &mutual{MTLS: m, verified: map[[sha256.Size]byte]time.Time{}}
}

// caller names the caller by the certificates that the client presented.
func (m *mutual) caller(chain []*x509.Certificate) (invalidation.Caller, error) {
	leaf := chain[0]
	refused := func(why string, err error) (invalidation.Caller, error) {
		e := &Error{Kind: KindMTLS, Why: why, Err: err}
		if subject := leaf.Subject.String(); namable(subject) {
			e.Whose = subject
		}
		return invalidation.Caller{}, e
	}
	if err := m.verify(chain); err != nil {
		return refused("certificate not trusted", err)
	}
	name, ok := m.name(leaf)
	if !ok || !namable(name) {
		return refused("the certificate has no "+string(m.Name)+" name, or several", nil)
	}
	return invalidation.Caller{
		Kind: KindMTLS, Name: name, Facts: &invalidation.Facts{Certificate: namesIn(leaf)},
	}, nil
}

// verify checks that the first certificate is one for clients and leads to one of the authorities.
func (m *mutual) verify(chain []*x509.Certificate) error {
	roots := m.Roots()
	if roots == nil { // x509 would take the system's
		return errors.New("there are no authorities")
	}
	sum := sha256.New()
	for _, c := range chain {
		sum.Write(c.Raw)
	}
	id, now := [sha256.Size]byte(sum.Sum(nil)), time.Now()
	m.mu.Lock()
	if m.roots != roots {
		clear(m.verified)
		m.roots = roots
	}
	until, known := m.verified[id]
	m.mu.Unlock()
	if known && now.Before(until) {
		return nil
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	chains, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return err
	}
	until = chains[0][0].NotAfter
	for _, c := range chains[0] {
		if c.NotAfter.Before(until) {
			until = c.NotAfter
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.roots == roots {
		if len(m.verified) >= maxVerified {
			clear(m.verified)
		}
		m.verified[id] = until
	}
	return nil
}

var commonName = asn1.ObjectIdentifier{2, 5, 4, 3}

// name returns the name that the certificate gives its holder.
func (m *mutual) name(leaf *x509.Certificate) (string, bool) {
	only := func(names []string) (string, bool) {
		if len(names) != 1 {
			return "", false
		}
		return names[0], true
	}
	switch m.Name {
	case NameCN:
		n := 0
		for _, x := range leaf.Subject.Names {
			if x.Type.Equal(commonName) {
				n++
			}
		}
		return leaf.Subject.CommonName, n == 1
	case NameDNS:
		return only(leaf.DNSNames)
	case NameEmail:
		return only(leaf.EmailAddresses)
	case NameSPIFFE:
		id := namesIn(leaf).SPIFFEID()
		return id, id != ""
	case NameSubject:
		return leaf.Subject.String(), true
	}
	return "", false
}

func namesIn(leaf *x509.Certificate) *invalidation.CertificateNames {
	names := &invalidation.CertificateNames{
		Subject: leaf.Subject.String(), CommonName: leaf.Subject.CommonName, DNS: leaf.DNSNames, Emails: leaf.EmailAddresses,
	}
	for _, u := range leaf.URIs {
		names.URIs = append(names.URIs, u.String())
	}
	return names
}
