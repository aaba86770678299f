package slapdtest

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"
)

// What every server has: the suffix with the folders People and Groups, and an account that may read all below it but
// passwords, and write nothing.
const (
	Suffix = "dc=example,dc=com"
	People = "ou=people," + Suffix
	Groups = "ou=groups," + Suffix
	// BindDN and Password are the account's.
	BindDN   = "cn=endsession,ou=services," + Suffix
	Password = "ldap-s3cret"

	rootDN       = "cn=admin," + Suffix
	rootPassword = "root-s3cret"
)

// startTimeout bounds how long a server may take to answer.
const startTimeout = 30 * time.Second

// Options are what differs between servers.
type Options struct {
	// SizeLimit is how many entries a search returns at most, unless it asks page by page; 0 means 500, as servers have it.
	SizeLimit int
	// NoPaging refuses to give results page by page.
	NoPaging bool
	// Access are further rules of access, in the words of slapd.access(5), before the usual ones.
	Access string
}

// Server is an OpenLDAP server.
type Server struct {
	dir, binary string
	plain, tls  int

	mu    sync.Mutex
	ended chan struct{} // of the process; nil while there is none
	pid   int
}

// New starts a server that ends with the test.
func New(t testing.TB, o Options) *Server {
	t.Helper()
	path, err := binary()
	switch {
	case errors.Is(err, errMissing) && os.Getenv("CI") != "true":
		t.Skip(err)
	case err != nil:
		t.Fatal(err)
	}
	s := &Server{dir: t.TempDir(), binary: path}
	if err := s.prepare(o); err != nil {
		t.Fatal(err)
	}
	s.Start(t)
	t.Cleanup(s.Stop)
	s.Load(t, `
dn: `+Suffix+`
objectClass: dcObject
objectClass: organization
o: Example

dn: `+People+`
objectClass: organizationalUnit

dn: `+Groups+`
objectClass: organizationalUnit

dn: ou=services,`+Suffix+`
objectClass: organizationalUnit

dn: `+BindDN+`
objectClass: organizationalRole
objectClass: simpleSecurityObject
userPassword: `+Password+`
`)
	return s
}

// prepare writes the configuration and the certificates.
func (s *Server) prepare(o Options) error {
	schemas := folder("/etc/ldap/schema", "/etc/openldap/schema", "/usr/local/etc/openldap/schema")
	var b strings.Builder
	for _, name := range []string{"core", "cosine", "nis", "inetorgperson"} {
		fmt.Fprintf(&b, "include %s\n", filepath.Join(schemas, name+".schema"))
	}
	if modules := folder("/usr/lib/ldap", "/usr/lib64/openldap", "/usr/lib/openldap"); modules != "" {
		fmt.Fprintf(&b, "modulepath %s\nmoduleload back_mdb\nmoduleload memberof\n", modules)
	}
	if o.SizeLimit == 0 {
		o.SizeLimit = 500
	}
	paged := "unlimited"
	if o.NoPaging {
		paged = "disabled"
	}
	fmt.Fprintf(&b, "sizelimit size.soft=%d size.hard=%d size.prtotal=%s\n", o.SizeLimit, o.SizeLimit, paged)
	fmt.Fprintf(&b, "TLSCACertificateFile %s\nTLSCertificateFile %s\nTLSCertificateKeyFile %s\n",
		s.CAFile(), filepath.Join(s.dir, "server.pem"), filepath.Join(s.dir, "server.key"))
	fmt.Fprintf(&b, "database mdb\nsuffix %q\nrootdn %q\nrootpw %s\ndirectory %s\nmaxsize 268435456\ndbnosync\noverlay memberof\nmemberof-refint TRUE\n",
		Suffix, rootDN, rootPassword, filepath.Join(s.dir, "data"))
	fmt.Fprintf(&b, "%s\naccess to attrs=userPassword by anonymous auth by * none\naccess to * by dn.exact=%q read by * none\n", o.Access, BindDN)
	if err := os.Mkdir(filepath.Join(s.dir, "data"), 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, "slapd.conf"), []byte(b.String()), 0o600); err != nil {
		return err
	}
	return s.certify()
}

// certify makes an authority, and a certificate of it for this machine.
func (s *Server) certify() error {
	at := time.Now()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "slapdtest"}, NotBefore: at.Add(-time.Hour), NotAfter: at.AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, DNSNames: []string{"localhost"},
	}
	authorityKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serverKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(serverKey)
	if err != nil {
		return err
	}
	authorityDER, err := x509.CreateCertificate(rand.Reader, authority, authority, &authorityKey.PublicKey, authorityKey)
	if err != nil {
		return err
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, authority, &serverKey.PublicKey, authorityKey)
	if err != nil {
		return err
	}
	for name, block := range map[string]*pem.Block{
		s.CAFile(): {Type: "CERTIFICATE", Bytes: authorityDER}, filepath.Join(s.dir, "server.pem"): {Type: "CERTIFICATE", Bytes: serverDER},
		filepath.Join(s.dir, "server.key"): {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// URL is where the server listens without TLS, and takes StartTLS; it keeps its ports when it is started again. The
// certificate is for the name localhost.
func (s *Server) URL() string { return fmt.Sprintf("ldap://localhost:%d", s.plain) }

// TLSURL is where the server listens with TLS.
func (s *Server) TLSURL() string { return fmt.Sprintf("ldaps://localhost:%d", s.tls) }

// CAFile holds the authority that vouches for the server.
func (s *Server) CAFile() string { return filepath.Join(s.dir, "ca.pem") }

// Log is what the server has written to its log.
func (s *Server) Log() []byte {
	text, _ := os.ReadFile(filepath.Join(s.dir, "log"))
	return text
}

// Start starts the server, after it was stopped, and waits until it answers.
func (s *Server) Start(t testing.TB) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range 5 {
		if s.plain == 0 {
			if s.plain, err = freePort(); err != nil {
				t.Fatal(err)
			}
			if s.tls, err = freePort(); err != nil {
				t.Fatal(err)
			}
		}
		if err = s.start(); err == nil {
			return
		}
		if !bytes.Contains(s.Log(), []byte("Address already in use")) {
			break
		}
		s.plain = 0 // somebody was faster
	}
	t.Fatalf("start slapd: %v\n%s", err, s.Log())
}

func (s *Server) start() error {
	log, err := os.Create(filepath.Join(s.dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(s.binary, "-d", "0", "-f", filepath.Join(s.dir, "slapd.conf"),
		"-h", fmt.Sprintf("ldap://127.0.0.1:%d ldaps://127.0.0.1:%d", s.plain, s.tls))
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = s.dir, log, log, attributes()
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The system ends the server with the thread that started it, so that thread is kept.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	poll, deadline := time.NewTicker(5*time.Millisecond), time.After(startTimeout)
	defer poll.Stop()
	for {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.plain))
		if err == nil {
			_ = conn.Close()
			s.pid, s.ended = cmd.Process.Pid, ended
			return nil
		}
		select {
		case <-ended:
			return errors.New("it ended")
		case <-deadline:
			_ = cmd.Process.Kill()
			return fmt.Errorf("it does not answer: %w", err)
		case <-poll.C:
		}
	}
}

// Stop ends the server at once; its data stays.
func (s *Server) Stop() { s.signal(syscall.SIGKILL) }

// Freeze stops the server without ending it, as a hanging host does: it takes connections and answers nobody. The function
// it returns lets it go on.
func (s *Server) Freeze() (thaw func()) {
	s.signal(syscall.SIGSTOP)
	// Its threads stop one after the other; until then one may answer.
	poll := time.NewTicker(time.Millisecond)
	defer poll.Stop()
	for range 1000 {
		if s.frozen() {
			break
		}
		<-poll.C
	}
	return func() { s.signal(syscall.SIGCONT) }
}

// frozen reports whether all threads have stopped, as far as this system tells.
func (s *Server) frozen() bool {
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.pid))
	for _, name := range threads {
		// pid (name) state …; the name may hold anything, a parenthesis too.
		text, err := os.ReadFile(name)
		if err == nil && !bytes.HasPrefix(text[bytes.LastIndexByte(text, ')')+1:], []byte(" T")) {
			return false
		}
	}
	return true
}

func (s *Server) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended == nil {
		return
	}
	_ = syscall.Kill(s.pid, sig)
	if sig == syscall.SIGKILL {
		<-s.ended
		s.ended = nil
	}
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// Do does something as the directory's owner, whom no limit and no rule of access concerns.
func (s *Server) Do(t testing.TB, what func(*ldap.Conn) error) {
	t.Helper()
	conn, err := ldap.DialURL(fmt.Sprintf("ldap://127.0.0.1:%d", s.plain))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Bind(rootDN, rootPassword); err != nil {
		t.Fatal(err)
	}
	if err := what(conn); err != nil {
		t.Fatal(err)
	}
}

// Load adds entries, written as LDIF (RFC 2849) without continued lines.
func (s *Server) Load(t testing.TB, ldif string) {
	t.Helper()
	s.Do(t, func(conn *ldap.Conn) error {
		for block := range strings.SplitSeq(strings.TrimSpace(ldif), "\n\n") {
			request := ldap.NewAddRequest("", nil)
			for line := range strings.Lines(block) {
				name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
				switch {
				case strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "":
					continue
				case !ok:
					return fmt.Errorf("not LDIF: %q", line)
				case strings.HasPrefix(value, ":"):
					b, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value[1:]))
					if err != nil {
						return err
					}
					value = string(b)
				default:
					value = strings.TrimPrefix(value, " ")
				}
				if name == "dn" {
					request.DN = value
				} else {
					request.Attribute(name, []string{value})
				}
			}
			if request.DN == "" {
				continue // comments only
			}
			request.Attributes = joined(request.Attributes)
			if err := conn.Add(request); err != nil {
				return fmt.Errorf("add %s: %w", request.DN, err)
			}
		}
		return nil
	})
}

// joined puts the values of an attribute together.
func joined(attributes []ldap.Attribute) (all []ldap.Attribute) {
	index := map[string]int{}
	for _, a := range attributes {
		i, ok := index[a.Type]
		if !ok {
			index[a.Type] = len(all)
			all = append(all, a)
			continue
		}
		all[i].Vals = append(all[i].Vals, a.Vals...)
	}
	return all
}
