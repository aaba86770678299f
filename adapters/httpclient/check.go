package httpclient

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/endsession/endsession/adapters"
)

const (
	// expiryNotice is how long before its end a certificate is warned of, or a third of its life if that is shorter.
	expiryNotice = 21 * 24 * time.Hour
	// maxSkew is how far a target's clock may be from ours before it is warned of.
	maxSkew = 2 * time.Minute
)

// CheckConnection turns what the first request of a probe came to into the checks "reachable", "tls" and "clock". product
// is what messages call the target: "the cluster". reached is false when there is nothing more to ask; otherwise the
// adapter goes on with what the target answered.
func (c *Client) CheckConnection(product string, reply Reply, err error) (checks []adapters.Check, reached bool) {
	if err != nil && reply.Status == 0 {
		if check, ok := unprotected(product, err); ok {
			return []adapters.Check{answers(product), check}, false
		}
		if adapters.KindOf(err) == adapters.Unreachable {
			message, remedy := unreached(err)
			return []adapters.Check{{
				Name: "reachable", Status: adapters.CheckFailed, Message: product + " cannot be reached" + message, Remedy: remedy,
			}}, false
		}
	}
	checks = append(checks, answers(product))
	switch {
	case reply.TLS != nil:
		checks = append(checks, c.checkTLS(*reply.TLS))
	case c.base.Scheme == "http":
		checks = append(checks, adapters.Check{Name: "tls", Status: adapters.CheckWarning,
			Message: "the connection is not encrypted", Remedy: "use https, unless what listens on this machine encrypts"})
	}
	if check, ok := clock(product, reply); ok {
		checks = append(checks, check)
	}
	return checks, true
}

func answers(product string) adapters.Check {
	return adapters.Check{Name: "reachable", Status: adapters.CheckOK, Message: product + " answers"}
}

// unreached says why there is no connection, and what may help.
func unreached(err error) (message, remedy string) {
	var dns *net.DNSError
	switch {
	case errors.As(err, &dns):
		return ": its host name has no address", "check the host in url, and the name servers of this machine"
	case errors.Is(err, syscall.ECONNREFUSED):
		return ": the connection is refused", "check the port in url, and whether the target runs"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, errTimeout), errors.Is(err, syscall.ETIMEDOUT):
		return ": it does not answer in time", "check url, routes and firewalls, and the target's load"
	}
	return "", "check url, routes and firewalls, and whether the target runs"
}

// unprotected explains a connection that came to nothing for want of trust, or of TLS.
func unprotected(product string, err error) (adapters.Check, bool) {
	check := adapters.Check{Name: "tls", Status: adapters.CheckFailed}
	var (
		verification *tls.CertificateVerificationError
		host         x509.HostnameError
		invalid      x509.CertificateInvalidError
		unknown      x509.UnknownAuthorityError
		pin          pinError
	)
	switch {
	case errors.As(err, &pin):
		check.Message = "the certificate is not the pinned one; its SHA-256 is " + pin.got
		check.Remedy = "if it was renewed, compare this with the certificate on the target itself, and set pin_sha256"
	case errors.As(err, &host):
		check.Message = "the certificate is for " + names(host.Certificate) + ", and not for the host in url"
		check.Remedy = "use one of these names in url, or have the certificate renewed with the right one, or set pin_sha256"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		check.Message, check.Remedy = "the certificate has expired, or is not valid yet", "renew it on the target"
		if c := invalid.Cert; c != nil {
			check.Message = fmt.Sprintf("the certificate is valid from %s to %s", day(c.NotBefore), day(c.NotAfter))
			check.Remedy = fmt.Sprintf("renew it on the target; here it is %s", day(time.Now()))
		}
	case errors.As(err, &unknown):
		check.Message = "the certificate is of an authority that is not trusted"
		check.Remedy = "set ca_file to the authority's certificate, or pin_sha256"
		if c := unknown.Cert; c != nil && string(c.RawIssuer) == string(c.RawSubject) {
			check.Message = "the certificate is self-signed"
			check.Remedy = "set ca_file to a copy of it, or pin_sha256"
		}
		if errors.As(err, &verification) && len(verification.UnverifiedCertificates) > 0 {
			check.Remedy += ", once it is compared with the one on the target itself, to " + fingerprint(verification.UnverifiedCertificates[0])
		}
	case IsCertificate(err):
		check.Message, check.Remedy = "the certificate is not trusted", "set ca_file, or pin_sha256"
	case errors.Is(err, errHandshake):
		check.Message = "no TLS connection can be made with " + product
		check.Remedy = "check that the port in url speaks https, and TLS 1.2 or later"
	default:
		return adapters.Check{}, false
	}
	return check, true
}

// checkTLS looks at a connection that is trusted: when will it not be any more?
func (c *Client) checkTLS(s tls.ConnectionState) adapters.Check {
	check := adapters.Check{Name: "tls", Status: adapters.CheckOK, Message: tls.VersionName(s.Version) + ", and the certificate is trusted"}
	if len(s.VerifiedChains) == 0 {
		check.Message = tls.VersionName(s.Version) + ", and the certificate is the pinned one"
	}
	now := time.Now()
	first := expiring(s)
	if first == nil {
		return check
	}
	left := first.NotAfter.Sub(now)
	what := "the certificate"
	if first != s.PeerCertificates[0] {
		what = "the certificate of an authority above it"
	}
	switch {
	case left <= 0:
		// Only a pinned certificate gets here: being itself is all that is asked of it.
		check.Status, check.Message = adapters.CheckWarning, fmt.Sprintf("%s ended on %s; it is trusted because it is pinned", what, day(first.NotAfter))
	case left < min(expiryNotice, first.NotAfter.Sub(first.NotBefore)/3):
		check.Status = adapters.CheckWarning
		check.Message = fmt.Sprintf("%s ends in %d days, on %s", what, int(left/(24*time.Hour)), day(first.NotAfter))
	default:
		return check
	}
	check.Remedy = "renew it on the target, and bring ca_file or pin_sha256 up to date if they are set"
	return check
}

// expiring returns the certificate with which the target's trust ends: the first to end of the chain that lasts longest.
func expiring(s tls.ConnectionState) *x509.Certificate {
	if len(s.PeerCertificates) == 0 {
		return nil
	}
	chains := s.VerifiedChains
	if len(chains) == 0 {
		chains = [][]*x509.Certificate{s.PeerCertificates[:1]}
	}
	var last *x509.Certificate
	for _, chain := range chains {
		first := chain[0]
		for _, c := range chain {
			if c.NotAfter.Before(first.NotAfter) {
				first = c
			}
		}
		if last == nil || first.NotAfter.After(last.NotAfter) {
			last = first
		}
	}
	return last
}

// clock compares the target's clock with ours, as far as the answer's Date header tells. Being a second or a slow answer
// off is no matter.
func clock(product string, reply Reply) (adapters.Check, bool) {
	at, err := http.ParseTime(reply.Header.Get("Date"))
	if err != nil {
		return adapters.Check{}, false
	}
	skew := time.Since(at)
	if skew.Abs() <= maxSkew {
		return adapters.Check{}, false
	}
	way := "behind"
	if skew < 0 {
		way = "ahead of"
	}
	return adapters.Check{
		Name: "clock", Status: adapters.CheckWarning,
		Message: fmt.Sprintf("the clock of %s is %v %s the gateway's", product, skew.Abs().Round(time.Second), way),
		Remedy:  "have both follow a time server: tokens, certificates and sessions end by the clock",
	}, true
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func fingerprint(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return hex.EncodeToString(sum[:])
}

// hostName is what may be shown of a certificate's names.
var hostName = regexp.MustCompile(`^[A-Za-z0-9*._:-]{1,253}$`)

// names lists what a certificate is for, but not endlessly.
func names(c *x509.Certificate) string {
	const most = 5
	var list []string
	if c != nil {
		for _, n := range c.DNSNames {
			if hostName.MatchString(n) {
				list = append(list, n)
			}
		}
		for _, ip := range c.IPAddresses {
			list = append(list, ip.String())
		}
	}
	switch {
	case len(list) == 0:
		return "no host"
	case len(list) > most:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}
