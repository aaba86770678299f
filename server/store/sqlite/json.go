package sqlite

import (
	"bytes"
	"database/sql/driver"
	"encoding/json"
	"errors"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
)

// encoder makes JSON columns.
type encoder struct{ err error }

func (e *encoder) json(v any, present bool) driver.Value {
	if !present || e.err != nil {
		return nil
	}
	data, err := json.Marshal(v)
	if err == nil && mangled(data) {
		err = errors.New("a string is not valid UTF-8")
	}
	if err != nil {
		e.err = err
		return nil
	}
	return string(data)
}

// mangled reports whether json.Marshal has replaced an invalid byte: it writes the escape \ufffd for that, but the
// character itself when a string really has it. The journal keeps a string as it is, or refuses it.
func mangled(data []byte) bool {
	for {
		i := bytes.Index(data, []byte(`\ufffd`))
		if i < 0 {
			return false
		}
		escapes := 0
		for i-escapes > 0 && data[i-escapes-1] == '\\' {
			escapes++
		}
		if escapes%2 == 0 {
			return true
		}
		data = data[i+len(`\ufffd`):]
	}
}

// What every call has is encoded by hand when it is as it usually is, byte by byte as [json.Marshal] does, which takes ten
// times as long. Whatever is unusual is left to that.

func (e *encoder) strings(list []string) driver.Value {
	if len(list) == 0 {
		return nil
	}
	t := begin(true)
	t.strings(list)
	if t.usual {
		return string(t.json)
	}
	return e.json(list, true)
}

func (e *encoder) resolved(s *adapters.Selector) driver.Value {
	if s == nil {
		return nil
	}
	t := begin(s.By == adapters.ByUser && len(s.Users) > 0 && len(s.Providers) == 0 && len(s.Groups) == 0 && len(s.Sessions) == 0)
	t.raw(`{"by":["user"],"users":[`)
	for i, u := range s.Users {
		t.usual = t.usual && len(u.At) == 0
		if i > 0 {
			t.raw(",")
		}
		t.raw(`{"name":`)
		t.string(u.Name)
		t.raw("}")
	}
	t.raw("]}")
	if t.usual {
		return string(t.json)
	}
	return e.json(s, true)
}

func (e *encoder) terms(terms invalidation.Terms) driver.Value {
	if terms == (invalidation.Terms{}) {
		return nil
	}
	t := begin(terms == invalidation.Terms{Rule: terms.Rule})
	t.raw(`{"rule":`)
	t.string(terms.Rule)
	t.raw("}")
	if t.usual {
		return string(t.json)
	}
	return e.json(terms, true)
}

func (e *encoder) selector(s invalidation.Selector) driver.Value {
	t := begin(s.User != nil && s.Provider == nil && s.Group == "" && len(s.Sessions) == 0 && !s.All &&
		s.User.Email == "" && len(s.User.Attributes) == 0 && len(s.User.TargetUsernames) == 0)
	if t.usual {
		t.raw(`{"user":{"id":`)
		t.string(s.User.ID)
		t.raw("}}")
	}
	if t.usual {
		return string(t.json)
	}
	return e.json(s, true)
}

// call is what else a call says.
func (e *encoder) call(c invalidation.Call) driver.Value {
	c.Selector = invalidation.Selector{}
	t := begin(!c.ConfirmBroad && !c.AllowUnsupported && len(c.Labels) == 0 && c.Priority == invalidation.PriorityNormal && c.RetryFor == 0)
	t.raw(`{"selector":{}`)
	if len(c.Targets) > 0 {
		t.raw(`,"targets":`)
		t.strings(c.Targets)
	}
	if c.Reason != "" {
		t.raw(`,"reason":`)
		t.string(c.Reason)
	}
	if c.OnBehalfOf != "" {
		t.raw(`,"on_behalf_of":`)
		t.string(c.OnBehalfOf)
	}
	t.raw("}")
	if t.usual {
		return string(t.json)
	}
	return e.json(c, true)
}

// text is JSON that is being written, as long as all is as usual.
type text struct {
	json  []byte
	usual bool
}

// begin may be given false if it is known already that something is not.
func begin(usual bool) text { return text{json: make([]byte, 0, 128), usual: usual} }

func (t *text) raw(s string) { t.json = append(t.json, s...) }

// string writes a string of which nothing has to be escaped.
func (t *text) string(s string) {
	for i := range len(s) {
		// As json.Marshal, it is made safe for HTML.
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' || c == '<' || c == '>' || c == '&' {
			t.usual = false
			return
		}
	}
	t.json = append(append(append(t.json, '"'), s...), '"')
}

func (t *text) strings(list []string) {
	t.raw("[")
	for i, s := range list {
		if i > 0 {
			t.raw(",")
		}
		t.string(s)
	}
	t.raw("]")
}
