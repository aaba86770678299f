package config_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	tlspkg "crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/server/config"
)

func TestTLSLoad(t *testing.T) {
	dir := t.TempDir()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"c.pem": {Type: "CERTIFICATE", Bytes: cert}, "k.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	settings := config.TLS{CertFile: filepath.Join(dir, "c.pem"), KeyFile: filepath.Join(dir, "k.pem"), Where: "f:7: listen.tls"}
	conf, err := settings.Load()
	if err != nil {
		t.Fatal(err)
	}
	if len(conf.Certificates) != 1 || !bytes.Equal(conf.Certificates[0].Certificate[0], cert) || conf.MinVersion < tlspkg.VersionTLS12 {
		t.Errorf("got %d certificates, at least version %x", len(conf.Certificates), conf.MinVersion)
	}
	settings.KeyFile = filepath.Join(dir, "none.pem")
	if _, err := settings.Load(); !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "f:7: listen.tls: ") {
		t.Errorf("missing key: got %v", err)
	}
}
