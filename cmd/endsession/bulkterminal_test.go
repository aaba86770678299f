package main

import (
	"context"
	"strings"
	"testing"
)

// TestBulkAtATerminal is asked, shows a bar that fills up, without colours, and ends with the summary.
func TestBulkAtATerminal(t *testing.T) {
	t.Parallel()
	fake := newFakeGateway()
	release := make(chan struct{})
	fake.before = func(ctx context.Context, user string, _ int) error {
		if user == "user-00050" {
			select {
			case <-release:
			case <-ctx.Done():
			}
		}
		return nil
	}
	c := fake.serve(t)
	at := sit(t, c.xterm(), "invalidate", "--users-file", usersIn(t, "people.txt", lines(numbered(60))), "--parallel", "2", "--job", "at-a-terminal")
	at.await("End the sessions of 60 people? [y/N]")
	if n := len(fake.users()); n > 0 {
		t.Errorf("%d were sent before anybody said yes", n)
	}
	at.press("y\n")
	at.await("59/60")
	close(release)
	status, shown := at.leave()
	if status != 0 {
		t.Errorf("exit status %d:\n%s", status, shown)
	}
	for _, want := range []string{"60/60", "60 succeeded", "job at-a-terminal: 60 people", "sessions ended: 60"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in:\n%s", want, shown)
		}
	}
	if strings.Contains(shown, "\x1b[3") || strings.Contains(shown, "\x1b[1m") {
		t.Errorf("colours: %q", shown)
	}
}
