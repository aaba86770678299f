package sqlite_test

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/endsession/endsession/server/store/sqlite"
)

// A string survives JSON exactly when it is valid UTF-8, and the store can tell.
func FuzzMangled(f *testing.F) {
	for _, s := range []string{"", "alice", "\ufffd", `\ufffd`, `\\ufffd`, `\\\ufffd`, "\xff", `\` + "\xff", `\\` + "\xff", "\xed\xa0\x80", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		data, err := json.Marshal(map[string]string{s: s})
		if err != nil {
			t.Fatal(err)
		}
		if got := sqlite.Mangled(data); got == utf8.ValidString(s) {
			t.Errorf("%q as %s: mangled %t", s, data, got)
		}
	})
}
