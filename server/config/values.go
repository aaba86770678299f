package config

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/endsession/endsession/adapters/secret"
	"github.com/endsession/endsession/server/config/strictyaml"
)

// Former is a type that decodes itself: out of any of the forms that Forms returns a value of. What describes the
// configuration asks for them.
type Former interface {
	Forms() []any
}

// Duration is a time span, written with the units d, h, m and s, the larger first: "90d", "1h30m".
type Duration time.Duration

var durationUnits = []struct {
	name   string
	length time.Duration
}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}, {"s", time.Second}}

// maxDuration is 100 years: longer than anything is kept, and far from overflow.
const maxDuration = 100 * 365 * 24 * time.Hour

var (
	durationForm = regexp.MustCompile(`^(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?$`)
	errDuration  = errors.New(`want a time span with the units d, h, m and s, such as "90d" or "1h30m"`)
)

// UnmarshalText reads a time span; it is longer than zero.
func (d *Duration) UnmarshalText(text []byte) error {
	m := durationForm.FindStringSubmatch(string(text))
	if m == nil || len(text) == 0 {
		return errDuration
	}
	var sum time.Duration
	for i, u := range durationUnits {
		if m[i+1] == "" {
			continue
		}
		n, err := strconv.ParseInt(m[i+1], 10, 64)
		if err != nil || n > int64(maxDuration/u.length) {
			return errors.New("longer than 100 years")
		}
		sum += time.Duration(n) * u.length
	}
	switch {
	case sum <= 0:
		return errors.New("want more than zero")
	case sum > maxDuration:
		return errors.New("longer than 100 years")
	}
	*d = Duration(sum)
	return nil
}

// String writes the time span as it is read.
func (d Duration) String() string {
	var b strings.Builder
	rest := time.Duration(d)
	for _, u := range durationUnits {
		if n := rest / u.length; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			rest -= n * u.length
		}
	}
	return b.String()
}

// MarshalYAML writes the time span as it is read.
func (d Duration) MarshalYAML() (any, error) { return d.String(), nil }

// Interval is a time span, or "never", which is less than zero.
type Interval time.Duration

const (
	never     = "never"
	neverEver = Interval(-1)
)

// UnmarshalText reads a time span, or "never".
func (i *Interval) UnmarshalText(text []byte) error {
	if string(text) == never {
		*i = neverEver
		return nil
	}
	return (*Duration)(i).UnmarshalText(text)
}

// String writes the interval as it is read.
func (i Interval) String() string {
	if i < 0 {
		return never
	}
	return Duration(i).String()
}

// MarshalYAML writes the interval as it is read.
func (i Interval) MarshalYAML() (any, error) { return i.String(), nil }

// Rate is a number of requests in a time. The zero value is no limit.
type Rate struct {
	Requests int
	Per      time.Duration
}

var rateUnits = map[string]time.Duration{"s": time.Second, "m": time.Minute, "h": time.Hour}

// UnmarshalText reads a rate: "20/s", "100/m", "1000/h".
func (r *Rate) UnmarshalText(text []byte) error {
	number, unit, _ := strings.Cut(string(text), "/")
	n, err := strconv.Atoi(number)
	if per, ok := rateUnits[unit]; ok && err == nil && n > 0 && n <= 1_000_000 && number == strconv.Itoa(n) {
		*r = Rate{Requests: n, Per: per}
		return nil
	}
	return errors.New(`want a number of requests per s, m or h, such as "20/s" or "100/m"`)
}

// PerSecond is the rate in requests a second; 0 means no limit.
func (r Rate) PerSecond() float64 {
	if r.Per == 0 {
		return 0
	}
	return float64(r.Requests) / r.Per.Seconds()
}

// IsZero reports whether there is no limit.
func (r Rate) IsZero() bool { return r == Rate{} }

// String writes the rate as it is read.
func (r Rate) String() string {
	for unit, per := range rateUnits {
		if per == r.Per {
			return strconv.Itoa(r.Requests) + "/" + unit
		}
	}
	return ""
}

// MarshalYAML writes the rate as it is read.
func (r Rate) MarshalYAML() (any, error) { return r.String(), nil }

// UnmarshalText reads one of the two words.
func (o *OnMissing) UnmarshalText(text []byte) error {
	switch x := OnMissing(text); x {
	case UseGiven, Fail:
		*o = x
		return nil
	}
	return errors.New("want use_given or fail")
}

// source is a part of the file that can be decoded only when more is known.
type source struct {
	node *yaml.Node
	path string
}

// UnmarshalStrict keeps the entry until the kinds are known.
func (t *Target) UnmarshalStrict(_ *strictyaml.Document, n *yaml.Node, path string) {
	t.source = source{n, path}
}

// UnmarshalStrict keeps the entry until the target's kind is known.
func (p *Providers) UnmarshalStrict(_ *strictyaml.Document, n *yaml.Node, path string) {
	p.source = source{n, path}
}

// UnmarshalStrict keeps the entry until the target's kind is known.
func (g *Group) UnmarshalStrict(_ *strictyaml.Document, n *yaml.Node, path string) {
	g.source = source{n, path}
}

// usernameMapping is the long form of a [Username].
type usernameMapping struct {
	// Provider, as "type" or "type/name", binds the names to one of the target's providers: they are looked for only there.
	Provider *string `yaml:"provider"`
	// Name is the CEL expression.
	Name *string `yaml:"name"`
}

// Forms implements [Former].
func (Username) Forms() []any { return []any{"", usernameMapping{}} }

// UnmarshalStrict accepts an expression, or a mapping with the keys provider and name.
func (u *Username) UnmarshalStrict(d *strictyaml.Document, n *yaml.Node, path string) {
	u.Where = d.Where(n.Line, path)
	expression := n
	if n.Kind == yaml.MappingNode {
		var m usernameMapping
		before := d.Count()
		d.DecodeMapping(n, path, &m, nil, nil)
		if d.Count() > before {
			return
		}
		if m.Provider == nil {
			d.Problemf(n.Line, path+".provider", "required; an entry without a provider is a plain expression")
			return
		}
		_, at := strictyaml.Lookup(n, "provider")
		if err := checkProvider(*m.Provider); err != nil {
			d.Invalid(at, at.Line, path+".provider", err)
		}
		if m.Name == nil {
			d.Problemf(n.Line, path+".name", "required")
			return
		}
		u.Provider, u.Name = *m.Provider, *m.Name
		_, expression = strictyaml.Lookup(n, "name")
		u.Where = d.Where(expression.Line, path+".name")
	} else {
		d.Decode(n, path, &u.Name)
	}
	u.Hidden = d.Expanded(expression)
	if expression.Kind == yaml.ScalarNode && strings.TrimSpace(u.Name) == "" && expression.ShortTag() == "!!str" {
		d.Invalid(expression, expression.Line, path, errors.New("empty expression"))
	}
}

// MarshalYAML writes the form it is read from, without what is not to be shown.
func (u Username) MarshalYAML() (any, error) {
	if u.Hidden {
		u.Name = secret.Redacted
	}
	if u.Provider == "" {
		return u.Name, nil
	}
	type plain Username
	return plain(u), nil
}

// MarshalYAML writes what the target's kind made of the entry.
func (p Providers) MarshalYAML() (any, error) { return p.mapping, nil }

// Forms implements [Former]. The other form is the target's kind's.
func (Group) Forms() []any { return []any{directoryGroup{}} }

// MarshalYAML writes what the target's kind made of the entry, or the directory's group.
func (g Group) MarshalYAML() (any, error) {
	if g.Directory != "" {
		return directoryGroup{Directory: g.Directory, MaxMembers: g.MaxMembers}, nil
	}
	return g.mapping, nil
}
