package config

import (
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/secret"
)

// Config is the whole configuration.
type Config struct {
	// Listen says where the gateway is reached.
	Listen Listen `yaml:"listen"`
	// Store is where the journal is. Default: SQLite in endsession.db, beside the configuration file.
	Store Store `yaml:"store"`
	// Auth says how callers prove who they are. Absent: nobody is asked, and only this machine is served.
	Auth *Auth `yaml:"auth,omitempty"`
	// Policy says what callers may do. Absent: everything, as long as nobody is asked who they are; otherwise nothing.
	Policy []Rule `yaml:"policy,omitempty"`
	// Protected names people whose sessions are ended nowhere, unless a rule of the policy says so.
	Protected *Protected `yaml:"protected,omitempty"`
	// Limits bound what each caller may do. Absent: nothing does.
	Limits *Limits `yaml:"limits,omitempty"`
	// Directory knows people's attributes and the members of groups. Absent: there is none.
	Directory *Directory `yaml:"directory,omitempty"`
	// Log is what is told to whoever operates the gateway, on standard error.
	Log Log `yaml:"log"`
	// Retention is how long finished invalidations are kept. Default: 90d.
	Retention Duration `yaml:"retention"`
	// CheckInterval is how often every target is probed, 30s to 24h, or "never"; see "endsession targets check". Default: 5m.
	CheckInterval Interval `yaml:"check_interval"`
	// Audit says how the audit trail is kept.
	Audit Audit `yaml:"audit"`
	// Targets are the systems in which sessions are ended. At least one.
	Targets []Target `yaml:"targets"`

	// Warnings are what is allowed and unwise, as "file:line: path: message".
	Warnings []string `yaml:"-"`
}

// Listen says where the gateway is reached. An address is "host:port"; a host that is not a loopback address needs TLS
// and authentication, or insecure: true.
type Listen struct {
	// GRPC is the address of the gRPC API. Default: 127.0.0.1:9090.
	GRPC string `yaml:"grpc"`
	// HTTP is the address of the REST API and its OpenAPI document. Default: 127.0.0.1:8080.
	HTTP string `yaml:"http"`
	// Admin is the address of /metrics, /healthz and /readyz, in plain text and for everybody. Default: 127.0.0.1:9091.
	Admin string `yaml:"admin"`
	// Health says to whom gRPC health checks are answered: open, authenticated or off. Default: open.
	Health Access `yaml:"health"`
	// Reflection says who may ask the gRPC listener for its contract: open, authenticated or off. Default: authenticated.
	Reflection Access `yaml:"reflection"`
	// Pprof has the admin listener serve profiles of the process under /debug/pprof/. Default: false.
	Pprof bool `yaml:"pprof,omitempty"`
	// TLS protects the gRPC and REST listeners. Absent: they speak plain text.
	TLS *TLS `yaml:"tls,omitempty"`
	// Insecure allows addresses beyond loopback without TLS or without authentication: everybody who reaches the port can
	// listen, or can end everybody's sessions. true, or a list of the listeners it is about: [admin].
	Insecure Insecure `yaml:"insecure,omitempty,flow"`
}

// TLS is the gateway's own certificate.
type TLS struct {
	// CertFile is a PEM file with the certificate and the chain to its authority.
	CertFile string `yaml:"cert_file"`
	// KeyFile is a PEM file with the certificate's private key.
	KeyFile string `yaml:"key_file"`
	// ClientCAFile is a PEM file with the authorities whose client certificates are accepted; see auth.mtls.
	ClientCAFile string `yaml:"client_ca_file,omitempty"`

	// Where is the section's place in the file, for messages.
	Where string `yaml:"-"`
}

// Store is where the journal is: one of the two.
type Store struct {
	// SQLite keeps the journal in a file, for a gateway of one process.
	SQLite *SQLite `yaml:"sqlite,omitempty"`
	// Postgres keeps the journal in a database that several gateways share.
	Postgres *Postgres `yaml:"postgres,omitempty"`
}

// Postgres is a journal in a PostgreSQL database.
type Postgres struct {
	// DSN says how to connect, as a URL or as key=value pairs; it usually holds a password.
	DSN secret.String `yaml:"dsn"`
	// Lease is how long the work of a gateway that has died, or does not reach the database, is left alone before another
	// one takes it over, 3s to 10m. Default: 30s.
	Lease Duration `yaml:"lease"`
}

// SQLite is a journal in a file.
type SQLite struct {
	// Path is the database file; it is made if there is none. Its directory must exist.
	Path string `yaml:"path" path:"true"`
}

// Directory is where the gateway looks people and groups up: one of file and ldap.
type Directory struct {
	// File is a static list.
	File *DirectoryFile `yaml:"file,omitempty"`
	// LDAP is a directory service.
	LDAP *LDAP `yaml:"ldap,omitempty"`
	// OnMissing says what happens to a user whom the directory does not know: use_given goes on with what the caller
	// gave, and warns; fail fails the run with NO_IDENTITY. Default: use_given.
	OnMissing OnMissing `yaml:"on_missing"`

	// Where is the section's place in the file, for messages.
	Where string `yaml:"-"`
}

// DirectoryFile is a static list of people and groups.
type DirectoryFile struct {
	// Path is a YAML (.yaml, .yml) or CSV (.csv) file.
	Path string `yaml:"path" path:"true"`
}

// OnMissing says what happens to a user whom the directory does not know.
type OnMissing string

// What happens to a user whom the directory does not know.
const (
	UseGiven OnMissing = "use_given"
	Fail     OnMissing = "fail"
)

// Target is one upstream instance. Besides the keys below it has exactly one that names its kind and holds what that
// kind needs: url, credentials, scope.
type Target struct {
	// Name is what callers and operators call the target: lower-case letters, digits and hyphens, at most 63. It is part
	// of the journal; a target with another name is another target.
	Name string `yaml:"name"`
	// Usernames are CEL expressions over user, each of which yields one of the person's names at this target, or a list
	// of them. Default: ['user.id'].
	Usernames []Username `yaml:"usernames,omitempty"`
	// Groups says what the groups that callers name are at this target. A group that is not here is not supported.
	Groups map[string]Group `yaml:"groups,omitempty"`
	// Providers says what the providers that callers name, "type" or "type/name", are at this target. The kind has
	// defaults for some types.
	Providers map[string]Providers `yaml:"providers,omitempty"`
	// Concurrency is how many attempts may be under way at the target at once, 1 to 1000. Default: 8.
	Concurrency int `yaml:"concurrency"`
	// Rate is how many requests the target is sent at most: "20/s", "100/m". Default: no limit.
	Rate Rate `yaml:"rate,omitempty"`
	// RetryFor is how long failed runs are retried at most. Default: 24h for users and sessions, 15m for broad selectors.
	RetryFor Duration `yaml:"retry_for,omitempty"`
	// Protected names people, by their names at this target, whose sessions there are not ended, unless a rule of the
	// policy says so. The gateway's own account is always among them.
	Protected *Protected `yaml:"protected,omitempty"`

	// Kind is the key that the target's own part stands under, Type what the registry has under it.
	Kind string        `yaml:"-"`
	Type adapters.Type `yaml:"-"`
	// Config is the target's own part, validated.
	Config adapters.Config `yaml:"-"`
	// Where is the target's place in the file, for messages.
	Where string `yaml:"-"`

	source source
}

// Username is one entry of a target's usernames: an expression, or an expression that is bound to one provider.
type Username struct {
	// Provider, as "type" or "type/name", binds the names to one of the target's providers: they are looked for only
	// there. Empty: everywhere.
	Provider string `yaml:"provider,omitempty"`
	// Name is the CEL expression.
	Name string `yaml:"name"`

	// Where is the entry's place in the file, for messages.
	Where string `yaml:"-"`
	// Hidden says that the expression came out of a variable or a file and is not to be shown.
	Hidden bool `yaml:"-"`
}

// Providers is what one provider of the API is at a target.
type Providers struct {
	// Where is the entry's place in the file, for messages.
	Where string
	// Providers are the target's own.
	Providers []adapters.Provider

	source  source
	mapping adapters.ProviderMapping
}

// Group is what one group of the API is at a target: groups of its own, or the members the directory knows.
type Group struct {
	// Where is the entry's place in the file, for messages.
	Where string
	// Groups are the target's own; nil if Directory is set.
	Groups []adapters.Group
	// Directory is the group's name in the directory. It is expanded to its members when a run is accepted.
	Directory string
	// MaxMembers is how many members the group may have; see [DefaultMaxMembers].
	MaxMembers int

	source  source
	mapping adapters.GroupMapping
}

// directoryGroup is a group's mapping to the directory, as it is written.
type directoryGroup struct {
	// Directory is the group's name in the directory.
	Directory string `yaml:"directory"`
	// MaxMembers is how many members the group may have, 1 to 10000: a run for a larger one fails. Default: 500.
	MaxMembers int `yaml:"max_members"`
}

// Defaults.
const (
	DefaultGRPC        = "127.0.0.1:9090"
	DefaultHTTP        = "127.0.0.1:8080"
	DefaultAdmin       = "127.0.0.1:9091"
	DefaultSQLitePath  = "endsession.db"
	DefaultRetention   = Duration(90 * 24 * time.Hour)
	DefaultLease       = Duration(30 * time.Second)
	DefaultCheck       = Interval(5 * time.Minute)
	DefaultConcurrency = 8
	DefaultMaxMembers  = 500
)

// Bounds.
const (
	minLease       = Duration(3 * time.Second)
	maxLease       = Duration(10 * time.Minute)
	minCheck       = Interval(30 * time.Second)
	maxCheck       = Interval(24 * time.Hour)
	maxConcurrency = 1000
	maxMembers     = 10_000
	maxNameLength  = 63
)

// SetDefaults implements [strictyaml.Defaulter].
func (c *Config) SetDefaults() {
	c.Listen.SetDefaults()
	c.Log.SetDefaults()
	c.Audit.SetDefaults()
	c.Retention = DefaultRetention
	c.CheckInterval = DefaultCheck
}

// SetDefaults implements [strictyaml.Defaulter].
func (l *Listen) SetDefaults() {
	l.GRPC, l.HTTP, l.Admin = DefaultGRPC, DefaultHTTP, DefaultAdmin
	l.Health, l.Reflection = Open, Authenticated
}

// SetDefaults implements [strictyaml.Defaulter].
func (p *Postgres) SetDefaults() { p.Lease = DefaultLease }

// SetDefaults implements [strictyaml.Defaulter].
func (d *Directory) SetDefaults() { d.OnMissing = UseGiven }

// SetDefaults implements [strictyaml.Defaulter].
func (t *Target) SetDefaults() { t.Concurrency = DefaultConcurrency }

// SetDefaults implements [strictyaml.Defaulter].
func (g *directoryGroup) SetDefaults() { g.MaxMembers = DefaultMaxMembers }
