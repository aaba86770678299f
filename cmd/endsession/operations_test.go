package main

import (
	"database/sql"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/endsession/endsession/adapters/kibana/kibanatest"
)

// TestBackupAndRestore does what the page about operation says of SQLite: a backup beside a running gateway, and a restore
// after more has happened.
func TestBackupAndRestore(t *testing.T) {
	t.Parallel()
	s := serveLab(t, nil)
	page, err := os.ReadFile(filepath.Join(root, "docs/operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	const onPage = `sqlite3 /var/lib/endsession/endsession.db "VACUUM INTO '/backup/endsession.db'"`
	if !strings.Contains(string(page), onPage) {
		t.Fatalf("the page does not say %s", onPage)
	}
	journal := filepath.Join(filepath.Dir(s.path), "endsession.db")
	backup := filepath.Join(t.TempDir(), "endsession.db")

	// One invalidation that is unfinished in the backup, and one that came after it.
	kibana := s.lab.systems["kibana-prod"].(*kibanatest.Server)
	kibana.Suffer(kibanatest.ElasticsearchDown)
	_, answer := s.post(t, "/v1/sessions:invalidate", `{"selector": {"user": {"id": "alice"}}, "waitTimeout": "0s"}`)
	unfinished := nameOf(t, answer)
	eventually(t, "the other targets are done", func() bool {
		_, answer = s.get(t, "/v1/"+unfinished)
		return strings.Count(answer, `"RUN_STATE_SUCCEEDED"`) == 3 && strings.Contains(answer, `"RUN_STATE_RETRYING"`)
	})
	db, err := sql.Open("sqlite", journal)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(`VACUUM INTO ?`, backup); err != nil {
		t.Fatalf("beside a running gateway: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	const later = `{"selector": {"user": {"id": "bob"}}, "targets": ["storage"], "requestId": "3e0a6a2c-8b0e-4b0e-9d0a-0f1f2a3b4c5d"}`
	_, answer = s.post(t, "/v1/sessions:invalidate", later)
	unknown := nameOf(t, answer)
	if status, answer := s.post(t, "/v1/sessions:invalidate", later); status != http.StatusOK || !strings.Contains(answer, `"replayed":true`) {
		t.Fatalf("before the restore: HTTP %d: %s", status, answer)
	}

	s.kill()
	files, err := filepath.Glob(journal + "*")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(backup)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, data, 0o600); err != nil {
		t.Fatal(err)
	}
	kibana.Suffer(kibanatest.Healthy)
	restored := &served{process: serve(t, s.path), lab: s.lab, path: s.path}

	if _, answer = restored.get(t, "/v1/"+unfinished+"?waitTimeout=60s"); !strings.Contains(answer, `"state":"INVALIDATION_STATE_SUCCEEDED"`) {
		t.Errorf("unfinished in the backup: %s", answer)
	}
	if gone, want := s.lab.gone("kibana-prod"), s.lab.labels(t, "kibana-prod", alicesSeats["kibana-prod"]); strings.Join(gone, " ") != strings.Join(want, " ") {
		t.Errorf("signed out %v, want %v", gone, want)
	}
	if status, answer := restored.get(t, "/v1/"+unknown); status != http.StatusNotFound {
		t.Errorf("accepted after the backup: HTTP %d: %s", status, answer)
	}
	status, answer := restored.post(t, "/v1/sessions:invalidate", later)
	if status != http.StatusOK || strings.Contains(answer, `"replayed":true`) || nameOf(t, answer) == unknown {
		t.Errorf("the same request again: HTTP %d: %s", status, answer)
	}
	// The trail, too, goes on after what the backup has of it.
	if out, err := program(labEnv, "audit", "verify", "--config", s.path).CombinedOutput(); err != nil {
		t.Errorf("audit verify: %v\n%s", err, out)
	}
}
