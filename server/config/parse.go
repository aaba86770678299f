package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/config/strictyaml"
	"github.com/endsession/endsession/server/invalidation"
)

// Environment is where references in the configuration lead. A nil function means the process's own environment or
// file system.
type Environment struct {
	LookupEnv func(name string) (string, bool)
	ReadFile  func(path string) ([]byte, error)
}

// maxReference bounds the content of a file that a reference names, so that a wrong path (/dev/zero) is an error.
const maxReference = 1 << 20

func readReference(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(io.LimitReader(f, maxReference+1))
	if err == nil && len(data) > maxReference {
		err = errors.New("larger than 1 MiB")
	}
	return data, err
}

// Load reads the configuration file at path; see [Parse].
func Load(path string, registry map[string]adapters.Type) (*Config, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return Parse(path, data, registry, Environment{})
}

// Parse reads a configuration. path is the file's, for messages and relative paths; registry holds the kinds of target.
//
// The error holds everything that is wrong, one problem a line. Then the configuration is not for use: it holds the
// targets that are sound in themselves, so that whoever looks further (do the expressions compile?) can report what else
// is wrong in the same go.
func Parse(path string, data []byte, registry map[string]adapters.Type, env Environment) (*Config, error) {
	if env.LookupEnv == nil {
		env.LookupEnv = os.LookupEnv
	}
	if env.ReadFile == nil {
		env.ReadFile = readReference
	}
	d := strictyaml.Read(data, strictyaml.Options{File: path, Expand: true, LookupEnv: env.LookupEnv, ReadFile: env.ReadFile})
	c := new(Config)
	if d.Root() == nil {
		return c, d.Err()
	}
	p := parser{Document: d, config: c, registry: registry}
	p.parse()
	c.Warnings = append(c.Warnings, d.Warnings()...)
	return c, d.Err()
}

// parser fills a configuration from a document.
type parser struct {
	*strictyaml.Document
	config   *Config
	registry map[string]adapters.Type
}

func (p *parser) parse() {
	p.DecodeMapping(p.Root(), "", p.config, nil, nil)
	if p.Root().Kind != yaml.MappingNode {
		return
	}
	p.listen()
	p.auth()
	p.store()
	p.directory()
	p.audit()
	p.checkInterval()
	p.policy()
	p.protected(p.Root(), "", p.config.Protected)
	p.limits()
	p.targets()
}

// required returns the value of a key, or notes that it is missing.
func (p *parser) required(n *yaml.Node, path, key string) *yaml.Node {
	_, v := strictyaml.Lookup(n, key)
	if v == nil && n.Kind == yaml.MappingNode {
		p.Problemf(n.Line, strictyaml.Join(path, key), "required")
	}
	return v
}

// text checks the text under a key that is required and must not be blank.
func (p *parser) text(n *yaml.Node, path, key, value string) {
	if v := p.required(n, path, key); v != nil && strings.TrimSpace(value) == "" && !p.Reported(strictyaml.Join(path, key)) {
		p.Invalid(v, v.Line, strictyaml.Join(path, key), errors.New("empty"))
	}
}

func (p *parser) listen() {
	l := &p.config.Listen
	_, n := strictyaml.Lookup(p.Root(), "listen")
	type listener struct {
		path string
		line int
	}
	taken := map[string]listener{}
	for _, a := range []struct{ key, address string }{{"grpc", l.GRPC}, {"http", l.HTTP}, {"admin", l.Admin}} {
		path, line := "listen."+a.key, p.Root().Line
		_, v := strictyaml.Lookup(n, a.key)
		if v != nil {
			line = v.Line
		}
		if p.Reported(path) || p.Reported("listen.insecure") {
			continue
		}
		loopback, err := checkAddress(a.address)
		switch other, same := taken[a.address]; {
		case err != nil:
			p.Invalid(v, line, path, err)
		case same && !strings.HasSuffix(a.address, ":0") && v == nil:
			p.Problemf(other.line, other.path, "the address is %s's default; give that one another", path)
		case same && !strings.HasSuffix(a.address, ":0"):
			p.Problemf(line, path, "the address is %s's already", other.path)
		case loopback:
		case a.key == "admin" && !slices.Contains(l.Insecure, a.key):
			p.Invalid(v, line, path, errors.New("reaches beyond loopback, and has neither TLS nor authentication: "+
				"use 127.0.0.1, or accept that everybody who reaches the port sees health and metrics with insecure: [admin]"))
		case a.key == "admin":
			what := "health and metrics"
			if l.Pprof {
				what = "health, metrics and profiles"
			}
			p.Warnf(line, path, "reaches beyond loopback: everybody who reaches the port sees %s", what)
		case !p.config.Auth.LetsIn() && !slices.Contains(l.Insecure, a.key):
			p.Invalid(v, line, path, errors.New("reaches beyond loopback, and callers are not authenticated: "+
				"configure auth and listen.tls, or accept that everybody who reaches the port can end everybody's sessions with insecure: true"))
		case !p.config.Auth.LetsIn():
			p.Warnf(line, path, "reaches beyond loopback, and callers are not authenticated: everybody who reaches the port can use it")
		case l.TLS == nil && !slices.Contains(l.Insecure, a.key):
			p.Invalid(v, line, path, errors.New("reaches beyond loopback without TLS: "+
				"configure listen.tls, or accept that everybody on the way can read and use credentials with insecure: true"))
		case l.TLS == nil:
			p.Warnf(line, path, "reaches beyond loopback without TLS: everybody on the way can read and use credentials")
		}
		taken[a.address] = listener{path, line}
	}
	if key, tls := strictyaml.Lookup(n, "tls"); tls != nil && l.TLS != nil {
		l.TLS.Where = p.Where(key.Line, "listen.tls")
		p.text(tls, "listen.tls", "cert_file", l.TLS.CertFile)
		p.text(tls, "listen.tls", "key_file", l.TLS.KeyFile)
	}
}

// checkAddress checks a listener's address, and tells whether only this machine reaches it.
func checkAddress(address string) (loopback bool, err error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return false, errors.New(`want "host:port"`)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || port != strconv.FormatUint(n, 10) {
		return false, errors.New("want a port from 0 to 65535")
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == 0x7f }) {
		return false, errors.New("want a host without spaces")
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback(), nil
}

func (p *parser) store() {
	s := &p.config.Store
	_, n := strictyaml.Lookup(p.Root(), "store")
	if n == nil {
		s.SQLite = &SQLite{Path: p.Rebase(DefaultSQLitePath)}
		return
	}
	_, sqlite := strictyaml.Lookup(n, "sqlite")
	_, postgres := strictyaml.Lookup(n, "postgres")
	switch {
	case sqlite != nil && postgres != nil:
		p.Problemf(n.Line, "store", "want sqlite or postgres, not both")
	case sqlite == nil && postgres == nil && n.Kind == yaml.MappingNode:
		p.Problemf(n.Line, "store", "want sqlite or postgres")
	}
	if sqlite != nil && s.SQLite != nil {
		p.text(sqlite, "store.sqlite", "path", s.SQLite.Path)
	}
	if postgres != nil && s.Postgres != nil {
		p.text(postgres, "store.postgres", "dsn", s.Postgres.DSN.Reveal())
		path := "store.postgres.lease"
		if _, v := strictyaml.Lookup(postgres, "lease"); v != nil && !p.Reported(path) && (s.Postgres.Lease < minLease || s.Postgres.Lease > maxLease) {
			p.Invalid(v, v.Line, path, fmt.Errorf("want %v to %v", minLease, maxLease))
		}
	}
}

func (p *parser) checkInterval() {
	const path = "check_interval"
	_, v := strictyaml.Lookup(p.Root(), path)
	if i := p.config.CheckInterval; v != nil && !p.Reported(path) && i != neverEver && (i < minCheck || i > maxCheck) {
		p.Invalid(v, v.Line, path, fmt.Errorf("want %v to %v, or never", minCheck, maxCheck))
	}
}

func (p *parser) directory() {
	key, n := strictyaml.Lookup(p.Root(), "directory")
	if n == nil || p.config.Directory == nil {
		return
	}
	dir := p.config.Directory
	dir.Where = p.Where(key.Line, "directory")
	_, file := strictyaml.Lookup(n, "file")
	ldapKey, ldap := strictyaml.Lookup(n, "ldap")
	if ldap != nil && dir.LDAP != nil {
		p.ldap(ldapKey, ldap, dir.LDAP)
	}
	switch {
	case file != nil && ldap != nil:
		p.Problemf(n.Line, "directory", "want file or ldap, not both")
	case file != nil && dir.File != nil:
		p.text(file, "directory.file", "path", dir.File.Path)
	case file == nil && ldap == nil && n.Kind == yaml.MappingNode:
		p.Problemf(n.Line, "directory", "want file or ldap")
	}
	if p.Reported("directory") {
		p.config.Directory = nil
	}
}

func (p *parser) targets() {
	c := p.config
	if n := p.required(p.Root(), "", "targets"); n != nil && n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		p.Problemf(n.Line, "targets", "want at least one")
	}
	names := map[string]int{}
	var sound []Target
	for i := range c.Targets {
		t := &c.Targets[i]
		if t.source.node == nil {
			continue
		}
		before := p.Count()
		usable := p.target(t, names)
		if p.Count() == before && !p.Reported(t.source.path) && usable {
			sound = append(sound, *t)
		}
	}
	c.Targets = sound
}

var targetName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// target fills one target. It returns false if the target needs a part of the configuration that has problems.
func (p *parser) target(t *Target, names map[string]int) (usable bool) {
	n, path := t.source.node, t.source.path
	t.Where = p.Where(n.Line, path)
	kinds := slices.Sorted(maps.Keys(p.registry))
	var keys, parts []*yaml.Node
	p.DecodeMapping(n, path, t, kinds, func(key, value *yaml.Node) {
		keys, parts = append(keys, key), append(parts, value)
	})
	if n.Kind != yaml.MappingNode {
		return false
	}
	p.name(t, names)
	p.concurrency(t)
	p.usernames(t)
	p.protected(n, path, t.Protected)

	switch len(keys) {
	case 0:
		p.Problemf(n.Line, path, "names no kind; want one of the keys %s", strings.Join(kinds, ", "))
		return false
	case 1:
	default:
		for _, key := range keys[1:] {
			p.Problemf(key.Line, strictyaml.Join(path, key.Value), "a second kind: the target is a %s already (line %d)",
				keys[0].Value, keys[0].Line)
		}
		return false
	}
	t.Kind, t.Type = keys[0].Value, p.registry[keys[0].Value]
	p.adapter(t, keys[0], parts[0])
	p.providers(t)
	return p.groups(t)
}

func (p *parser) name(t *Target, names map[string]int) {
	n, path := t.source.node, strictyaml.Join(t.source.path, "name")
	v := p.required(n, t.source.path, "name")
	if v == nil || p.Reported(path) {
		return
	}
	line, taken := names[t.Name]
	switch {
	case !targetName.MatchString(t.Name) || len(t.Name) > maxNameLength:
		p.Invalid(v, v.Line, path, errors.New("want lower-case letters, digits and hyphens, a letter or digit at both ends, at most 63"))
	case taken:
		p.Invalid(v, v.Line, path, fmt.Errorf("the name is taken by the target in line %d", line))
	}
	names[t.Name] = v.Line
}

func (p *parser) concurrency(t *Target) {
	path := strictyaml.Join(t.source.path, "concurrency")
	_, v := strictyaml.Lookup(t.source.node, "concurrency")
	if v != nil && !p.Reported(path) && (t.Concurrency < 1 || t.Concurrency > maxConcurrency) {
		p.Invalid(v, v.Line, path, fmt.Errorf("want 1 to %d", maxConcurrency))
	}
}

func (p *parser) usernames(t *Target) {
	key, v := strictyaml.Lookup(t.source.node, "usernames")
	switch {
	case v == nil:
		t.Usernames = []Username{{Name: "user.id", Where: t.Where}}
	case v.Kind == yaml.SequenceNode && len(v.Content) == 0:
		p.Problemf(key.Line, strictyaml.Join(t.source.path, "usernames"), "empty; leave the key out for ['user.id']")
	}
}

// adapter decodes and validates the part that belongs to the target's kind.
func (p *parser) adapter(t *Target, key, n *yaml.Node) {
	path := strictyaml.Join(t.source.path, key.Value)
	t.Config = t.Type.NewConfig()
	p.Decode(n, path, t.Config)
	if n.Kind != yaml.MappingNode || p.Broken(n) {
		return
	}
	p.report(t.Config.Validate(), t.Config, key, n, path)
}

// report notes what a part's own validation found, each at the key that its message begins with. What concerns a key
// with a problem already is left out.
func (p *parser) report(err error, v any, key, n *yaml.Node, path string) {
	type finding struct {
		node *yaml.Node
		line int
		path string
		err  error
	}
	var found []finding
	for _, err := range flatten(err) {
		f := finding{node: n, line: key.Line, path: path, err: err}
		prefix, rest, ok := strings.Cut(err.Error(), ": ")
		first, _, _ := strings.Cut(prefix, ".")
		if first, _, _ = strings.Cut(first, "["); ok && strictyaml.HasField(v, first) {
			f.path, f.err = path+"."+prefix, errors.New(rest)
			for at := n; at != nil; {
				word, more, dotted := strings.Cut(prefix, ".")
				word, _, indexed := strings.Cut(word, "[")
				k, value := strictyaml.Lookup(at, word)
				if k != nil {
					f.line, f.node = k.Line, value
				}
				if at, prefix = value, more; !dotted || indexed {
					break
				}
			}
		}
		if !p.Reported(f.path) {
			found = append(found, f)
		}
	}
	for _, f := range found {
		p.Invalid(f.node, f.line, f.path, f.err)
	}
}

// flatten takes apart what errors.Join joined.
func flatten(err error) []error {
	if err == nil {
		return nil
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok || errors.Join(joined.Unwrap()...).Error() != err.Error() {
		return []error{err}
	}
	var all []error
	for _, e := range joined.Unwrap() {
		all = append(all, flatten(e)...)
	}
	return all
}

// checkProvider checks a provider as callers name it: "type" or "type/name".
func checkProvider(key string) error {
	kind, name, named := strings.Cut(key, "/")
	switch {
	case !slices.Contains(invalidation.ProviderTypes, kind):
		return fmt.Errorf("unknown provider type; want one of %s, perhaps with \"/\" and a name", strings.Join(invalidation.ProviderTypes, ", "))
	case named && strings.TrimSpace(name) == "":
		return errors.New(`want a name after the "/"`)
	}
	return nil
}

func (p *parser) providers(t *Target) {
	key, n := strictyaml.Lookup(t.source.node, "providers")
	if n == nil || n.Kind != yaml.MappingNode {
		return
	}
	if t.Type.NewProviders == nil {
		p.Problemf(key.Line, strictyaml.Join(t.source.path, "providers"), "a %s target has no providers", t.Kind)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(t.Providers)) {
		m := t.Providers[name]
		key, _ := strictyaml.Lookup(n, name)
		if m.source.node == nil {
			continue
		}
		path := m.source.path
		if err := checkProvider(name); err != nil {
			p.Problemf(key.Line, path, "%v", err)
			continue
		}
		m.Where, m.mapping = p.Where(key.Line, path), t.Type.NewProviders()
		p.Decode(m.source.node, path, m.mapping)
		if p.Reported(path) {
			continue
		}
		providers, err := m.mapping.Providers()
		if err == nil && len(providers) == 0 {
			err = errors.New("names no provider")
		}
		p.report(err, m.mapping, key, m.source.node, path)
		m.Providers = providers
		t.Providers[name] = m
	}
}

func (p *parser) groups(t *Target) (usable bool) {
	_, n := strictyaml.Lookup(t.source.node, "groups")
	if n == nil || n.Kind != yaml.MappingNode {
		return true
	}
	usable = true
	for _, name := range slices.Sorted(maps.Keys(t.Groups)) {
		g := t.Groups[name]
		key, _ := strictyaml.Lookup(n, name)
		if g.source.node == nil {
			continue
		}
		path := g.source.path
		if strings.TrimSpace(name) == "" {
			p.Problemf(key.Line, path, "a group without a name")
			continue
		}
		g.Where = p.Where(key.Line, path)
		_, inDirectory := strictyaml.Lookup(g.source.node, "directory")
		_, bounded := strictyaml.Lookup(g.source.node, "max_members")
		switch {
		case inDirectory != nil || bounded != nil:
			usable = p.directoryGroup(&g) && usable
		case t.Type.NewGroups == nil:
			p.Problemf(key.Line, path, "a %s target has no groups of its own; want {directory: NAME}", t.Kind)
		default:
			g.mapping = t.Type.NewGroups()
			p.Decode(g.source.node, path, g.mapping)
			if p.Reported(path) {
				continue
			}
			groups, err := g.mapping.Groups()
			if err == nil && len(groups) == 0 {
				err = errors.New("names no group")
			}
			p.report(err, g.mapping, key, g.source.node, path)
			g.Groups = groups
		}
		t.Groups[name] = g
	}
	return usable
}

// directoryGroup fills a group that is mapped to the directory. It returns false if the directory has problems.
func (p *parser) directoryGroup(g *Group) (usable bool) {
	n, path := g.source.node, g.source.path
	var m directoryGroup
	p.DecodeMapping(n, path, &m, nil, nil)
	p.text(n, path, "directory", m.Directory)
	if _, v := strictyaml.Lookup(n, "max_members"); v != nil && !p.Reported(path+".max_members") && (m.MaxMembers < 1 || m.MaxMembers > maxMembers) {
		p.Invalid(v, v.Line, path+".max_members", fmt.Errorf("want 1 to %d", maxMembers))
	}
	g.Directory, g.MaxMembers = m.Directory, m.MaxMembers
	if _, configured := strictyaml.Lookup(p.Root(), "directory"); configured == nil {
		p.Problemf(n.Line, path, "there is no directory; add the section directory")
	}
	return p.config.Directory != nil
}
