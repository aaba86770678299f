// Package alloctest holds what hot paths allocate to baselines that are committed: unlike time, it is nearly the same on every
// machine.
package alloctest

import (
	"encoding/json"
	"errors"
	"flag"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

var update = flag.Bool("update-allocations", false, "rewrite the baseline of allocations")

const (
	baseline = "testdata/allocations.json"
	warmUp   = 100 // statements are prepared, pools filled
	runs     = 300 // in which is also what happens beside calls, now and then
	// growth is how many times the baseline's allocations are too many.
	growth = 1.10
)

// Compare calls each of the paths and fails the test if a call allocates more than a tenth more than testdata/allocations.json
// says, or if the file is about other paths than these. With -update-allocations the file is written. The race detector
// allocates, too: with it the test is skipped.
func Compare(t *testing.T, paths map[string]func()) {
	t.Helper()
	if race {
		t.Skip("the race detector allocates, too: make test runs this test once more without it")
	}
	found := map[string]float64{}
	for name, call := range paths {
		for range warmUp {
			call()
		}
		found[name] = testing.AllocsPerRun(runs, call)
	}
	if *update {
		write(t, found)
		return
	}
	text, err := os.ReadFile(baseline)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	known := map[string]float64{}
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil {
		t.Fatalf("%s: %v; make allocations writes it", baseline, err)
	}
	if got, want := slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(known)); !slices.Equal(got, want) {
		t.Errorf("%s is about %q, the test about %q; make allocations writes it anew", baseline, want, got)
	}
	for name, got := range found {
		t.Logf("%s: %.0f allocations, baseline %.0f", name, got, known[name])
		if got > known[name]*growth {
			t.Errorf("%s: %.0f allocations, want at most a tenth more than %.0f; if that is meant, make allocations", name, got, known[name])
		}
	}
}

func write(t *testing.T, found map[string]float64) {
	t.Helper()
	text, err := json.MarshalIndent(found, "", "  ")
	if err == nil {
		err = os.MkdirAll(filepath.Dir(baseline), 0o755)
	}
	if err == nil {
		err = os.WriteFile(baseline, append(text, '\n'), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
