package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"

	endsessionv1 "github.com/endsession/endsession/gen/endsession/v1"
	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// defaultServer is where `endsession serve` listens by default.
const defaultServer = "127.0.0.1:9090"

// connection holds the settings of the client commands: flags, and the environment where a flag is not given.
type connection struct {
	lookup   func(string) (string, bool)
	server   string
	tls      bool
	caFile   file
	certFile file
	keyFile  file
	// serverName is the name in the gateway's certificate, if it is not the host's.
	serverName string
	apiKey     secretFile
	token      secretFile
	// wrong is what is wrong in the environment.
	wrong error
}

// file is a flag that names a file. Given but empty it is refused: an empty shell variable must not take away the
// authority that was to be trusted.
type file string

// Set implements pflag.Value.
func (f *file) Set(path string) error {
	if path == "" {
		return errors.New("must not be empty")
	}
	*f = file(path)
	return nil
}

// String implements pflag.Value.
func (f *file) String() string { return string(*f) }

// Type implements pflag.Value.
func (f *file) Type() string { return "file" }

// flags adds the connection's flags to a command.
func (c *connection) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	c.caFile, c.certFile, c.keyFile = file(c.env("ENDSESSION_TLS_CA_FILE", "")), file(c.env("ENDSESSION_TLS_CERT_FILE", "")), file(c.env("ENDSESSION_TLS_KEY_FILE", ""))
	secure, err := strconv.ParseBool(c.env("ENDSESSION_TLS", "false"))
	if err != nil {
		c.wrong = usageError("ENDSESSION_TLS: want true or false")
	}
	f.StringVar(&c.server, "server", c.env("ENDSESSION_SERVER", defaultServer), "host:port of the gateway's gRPC listener [ENDSESSION_SERVER]")
	f.BoolVar(&c.tls, "tls", secure, "use TLS also for a loopback address [ENDSESSION_TLS=true]")
	f.Var(&c.caFile, "tls-ca-file", "PEM file of the authorities to trust instead of the system's; implies --tls [ENDSESSION_TLS_CA_FILE]")
	f.Var(&c.certFile, "tls-cert-file", "PEM file of the client certificate; implies --tls [ENDSESSION_TLS_CERT_FILE]")
	f.Var(&c.keyFile, "tls-key-file", "PEM file of the client certificate's key [ENDSESSION_TLS_KEY_FILE]")
	f.StringVar(&c.serverName, "tls-server-name", c.env("ENDSESSION_TLS_SERVER_NAME", ""), "`name` in the gateway's certificate, if not the host's; implies --tls [ENDSESSION_TLS_SERVER_NAME]")
	c.secret(cmd, &c.apiKey, "api-key-file", "file with the API key", "ENDSESSION_API_KEY")
	c.secret(cmd, &c.token, "token-file", "file with an OpenID Connect access token", "ENDSESSION_TOKEN")
}

// secret adds a flag for a secret, which is never an argument itself: those are shown to everybody on the machine. The
// secret may be in the environment, or its file be named there.
func (c *connection) secret(cmd *cobra.Command, s *secretFile, flag, usage, variable string) {
	s.path = file(c.env(variable+"_FILE", ""))
	if s.path == "" {
		s.text = strings.TrimSpace(c.env(variable, ""))
	}
	cmd.Flags().Var(&s.path, flag, usage+" ["+variable+", "+variable+"_FILE]")
}

func (c *connection) env(name, otherwise string) string {
	if v, ok := c.lookup(name); ok && v != "" {
		return v
	}
	return otherwise
}

// dial returns a client of the gateway. Without TLS settings a loopback address is spoken to in plain text, any other
// with TLS.
func (c *connection) dial() (endsessionv1.SessionServiceClient, func(), error) {
	if c.wrong != nil {
		return nil, nil, c.wrong
	}
	host, _, err := net.SplitHostPort(c.server)
	if err != nil {
		return nil, nil, usageError("--server: want host:port, got %q", c.server)
	}
	creds, encrypted := insecure.NewCredentials(), false
	if c.tls || c.caFile != "" || c.certFile != "" || c.keyFile != "" || c.serverName != "" || !loopback(host) {
		conf, err := c.tlsConfig()
		if err != nil {
			return nil, nil, &exitError{exitUsage, err}
		}
		creds, encrypted = credentials.NewTLS(conf), true
	}
	// A gateway that was restarted is found again soon; gRPC's own patience would be two minutes.
	again := backoff.DefaultConfig
	again.MaxDelay = maxBackoff
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds), grpc.WithConnectParams(grpc.ConnectParams{Backoff: again, MinConnectTimeout: maxBackoff}),
	}
	credential, err := c.credential(encrypted)
	if err != nil {
		return nil, nil, &exitError{exitUsage, err}
	}
	if credential != nil {
		options = append(options, grpc.WithPerRPCCredentials(*credential))
	}
	cc, err := grpc.NewClient(c.server, options...)
	if err != nil {
		return nil, nil, usageError("--server: %w", err)
	}
	return endsessionv1.NewSessionServiceClient(cc), func() { _ = cc.Close() }, nil
}

func (c *connection) tlsConfig() (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: c.serverName}
	if c.caFile != "" {
		pem, err := os.ReadFile(string(c.caFile))
		if err != nil {
			return nil, fmt.Errorf("--tls-ca-file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-ca-file: no certificate in %s", c.caFile)
		}
	}
	if (c.certFile == "") != (c.keyFile == "") {
		return nil, fmt.Errorf("--tls-cert-file and --tls-key-file belong together")
	}
	if c.certFile != "" {
		cert, err := tls.LoadX509KeyPair(string(c.certFile), string(c.keyFile))
		if err != nil {
			return nil, fmt.Errorf("--tls-cert-file: %w", err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// violations returns the fields that a call's error names.
func violations(st *status.Status) []*errdetails.BadRequest_FieldViolation {
	for _, d := range st.Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			return b.GetFieldViolations()
		}
	}
	return nil
}
