package sqlite_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/server/invalidation"
	"github.com/endsession/endsession/server/store/sqlite"
)

// usual are values as most calls have them.
func usual(s string) []any {
	return []any{
		[]string{s}, []string{"saml", s},
		&adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: s}}},
		&adapters.Selector{By: adapters.ByUser, Users: []adapters.User{{Name: "alice"}, {Name: s}}},
		invalidation.Terms{Rule: s},
		invalidation.Selector{User: &invalidation.User{ID: s}},
		invalidation.Call{},
		invalidation.Call{Targets: []string{"apm", s}, Reason: s, OnBehalfOf: s},
	}
}

// marshalled is what a column must hold of a value that is there.
func marshalled(t *testing.T, v any) string {
	t.Helper()
	if c, ok := v.(invalidation.Call); ok {
		c.Selector = invalidation.Selector{} // has a column of its own
		v = c
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// What is encoded by hand is what json.Marshal makes of it, whatever fields there are, and whichever is used.
func TestEncode(t *testing.T) {
	check := func(v any) {
		t.Helper()
		if got, err := sqlite.Encode(v); err != nil || got != marshalled(t, v) {
			t.Errorf("%T: %s, %v, want %s", v, got, err, marshalled(t, v))
		}
	}
	for _, v := range append(usual("alice"), &adapters.Selector{By: adapters.ByUser},
		invalidation.Call{Selector: invalidation.Selector{All: true}, Labels: map[string]string{"job": "7"}}) {
		check(v)
		vary(reflect.ValueOf(v), func(x reflect.Value) { check(x.Interface()) })
	}
	for _, none := range []any{[]string(nil), []string{}, (*adapters.Selector)(nil), invalidation.Terms{}} {
		if got, err := sqlite.Encode(none); got != "" || err != nil {
			t.Errorf("%#v: %s, %v, want NULL", none, got, err)
		}
	}
}

// vary calls f with copies of v in each of which something is set that was not.
func vary(v reflect.Value, f func(reflect.Value)) {
	c := reflect.New(v.Type()).Elem()
	c.Set(v)
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			c.Set(reflect.New(v.Type().Elem()))
			f(c)
		} else {
			vary(v.Elem(), func(x reflect.Value) {
				c := reflect.New(x.Type())
				c.Elem().Set(x)
				f(c)
			})
		}
	case reflect.Struct:
		for i := range v.NumField() {
			vary(v.Field(i), func(x reflect.Value) {
				c := reflect.New(v.Type()).Elem()
				c.Set(v)
				c.Field(i).Set(x)
				f(c)
			})
		}
	case reflect.Slice:
		if v.Len() == 0 {
			f(reflect.MakeSlice(v.Type(), 1, 1))
		}
		for i := range v.Len() {
			vary(v.Index(i), func(x reflect.Value) {
				c := reflect.AppendSlice(reflect.Zero(v.Type()), v)
				c.Index(i).Set(x)
				f(c)
			})
		}
	case reflect.Map:
		c.Set(reflect.MakeMap(v.Type()))
		c.SetMapIndex(reflect.ValueOf("k"), reflect.Zero(v.Type().Elem()))
		f(c)
	case reflect.String:
		c.SetString(v.String() + "x")
		f(c)
	case reflect.Bool:
		c.SetBool(true)
		f(c)
	case reflect.Int, reflect.Int64:
		c.SetInt(1)
		f(c)
	case reflect.Uint8:
		c.SetUint(v.Uint() | 2)
		f(c)
	default:
		panic("no variation of " + v.Type().String())
	}
}

func FuzzEncode(f *testing.F) {
	for _, s := range []string{"", "alice", `"`, `\`, "<", ">", "&", "\x00", "\x1f", "~", "\x7f", "é", "\u2028", "\ufffd", "\xff", `\ufffd`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, v := range usual(s) {
			if reflect.ValueOf(v).IsZero() { // nothing is said by s
				continue
			}
			got, err := sqlite.Encode(v)
			if !utf8.ValidString(s) {
				if err == nil {
					t.Errorf("%q: %T: %s, want an error", s, v, got)
				}
			} else if err != nil || got != marshalled(t, v) {
				t.Errorf("%q: %T: %s, %v, want %s", s, v, got, err, marshalled(t, v))
			}
		}
	})
}
