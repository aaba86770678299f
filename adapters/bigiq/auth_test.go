package bigiq_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/endsession/endsession/adapters"
	"github.com/endsession/endsession/adapters/bigiq"
	"github.com/endsession/endsession/adapters/bigiq/bigiqtest"
	"github.com/endsession/endsession/adapters/emulator"
	"github.com/endsession/endsession/adapters/secret"
)

// Tokens live five minutes, a task may take longer. The 401 in between says nothing about the task.
func TestTokenEndsWhilePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: 12 * time.Minute})
		x.populate()
		r := x.must(t, byUser("alice"))
		if n := len(x.posts()); n != 1 || r.result.Verification != adapters.Unverifiable {
			t.Errorf("%d tasks, want one", n)
		}
		if ok, failed, exchanged := x.Logins(); ok != 1 || failed != 0 || exchanged < 2 {
			t.Errorf("%d logins, %d failures, %d exchanges, want one login and exchanges", ok, failed, exchanged)
		}
		for _, req := range x.sent.Requests() {
			if req.Status == http.StatusUnauthorized {
				t.Errorf("%s %s was sent with an ended token", req.Method, req.Path)
			}
		}
	})
}

// A token may end earlier than it said: one new login, and the request again.
func TestTokenRevokedWhilePolling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: time.Minute})
		x.populate()
		r := &run{}
		res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
		if err != nil {
			t.Fatal(err)
		}
		r.resume = res.Pending.Resume
		x.EndTokens()
		if err := x.drive(t, r, byUser("alice")); err != nil {
			t.Fatalf("a poll's 401 was taken for a failed kill: %v", err)
		}
		if ok, _, _ := x.Logins(); ok != 2 || len(x.posts()) != 1 {
			t.Errorf("%d logins, %d tasks, want 2 and 1", ok, len(x.posts()))
		}
	})
}

// A 401 that a new login does not cure ends after one repetition, and keeps the task.
func TestUnauthorizedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
		if err != nil {
			t.Fatal(err)
		}
		isPoll := func(r *http.Request) bool { return strings.HasPrefix(r.URL.Path, tasksPath+"/") }
		x.faults.Add(emulator.Rule{Match: isPoll, Fault: emulator.Status(http.StatusUnauthorized)})
		r := &run{resume: res.Pending.Resume}
		wantError(t, x.drive(t, r, byUser("alice")), adapters.Credentials, "")
		if r.result.Pending == nil || !strings.Contains(string(r.result.Pending.Resume), x.Tasks()[0].ID) {
			t.Errorf("the error carries no resume state with the task: %+v", r.result)
		}
		if n := x.count("GET", tasksPath+"/"); n != 2 {
			t.Errorf("polled %d times, want twice", n)
		}
		x.faults.Clear()
		if err := x.drive(t, r, byUser("alice")); err != nil || len(x.posts()) != 1 {
			t.Errorf("%v, %d tasks, want the first one resumed", err, len(x.posts()))
		}
	})
}

// A refused login is not repeated, and not by those either who waited for it: accounts get locked.
func TestRefusedLoginIsNotRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.Password = secret.New("wrong") })
		// All of them are waiting before the first answer comes.
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", "/mgmt/shared/authn/login"), Fault: emulator.Delay(time.Second)})
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				_, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
				if adapters.KindOf(err) != adapters.Credentials {
					t.Errorf("error %v, want kind credentials", err)
				}
			})
		}
		wg.Wait()
		if _, failed, _ := x.Logins(); failed != 1 {
			t.Errorf("%d failed logins, want 1", failed)
		}
		// Whoever comes later tries again: the password may have been corrected at BIG-IQ.
		_, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
		if _, failed, _ := x.Logins(); failed != 2 || adapters.KindOf(err) != adapters.Credentials {
			t.Errorf("later: %d failed logins, error %v", failed, err)
		}
	})
}

// Fifty polls find the token ended: one new login.
func TestManyRunsRenewTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{TaskTime: time.Minute})
		resumes := make([]json.RawMessage, 50)
		for i := range resumes {
			res, err := x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")})
			if err != nil {
				t.Fatal(err)
			}
			resumes[i] = res.Pending.Resume
		}
		x.EndTokens()
		var wg sync.WaitGroup
		for _, resume := range resumes {
			wg.Go(func() {
				if err := x.drive(t, &run{resume: resume}, byUser("alice")); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if ok, _, _ := x.Logins(); ok != 2 {
			t.Errorf("%d logins, want 2", ok)
		}
	})
}

// The refresh token lives ten hours from the login; then it takes the password again.
func TestRefreshTokenEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		for range 3 {
			x.must(t, byUser("alice"))
			time.Sleep(4*time.Hour + time.Minute)
		}
		if ok, _, exchanged := x.Logins(); ok != 1 || exchanged != 2 {
			t.Errorf("within ten hours: %d logins, %d exchanges, want 1 and 2", ok, exchanged)
		}
		x.must(t, byUser("alice"))
		if ok, _, _ := x.Logins(); ok != 2 {
			t.Errorf("after them: %d logins, want 2", ok)
		}
	})
}

func TestWaitingForALoginEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", "/mgmt/shared/authn/login"), Fault: emulator.Hang()})
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = x.Invalidate(t.Context(), adapters.Request{Selector: byUser("alice")}) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		begin := time.Now()
		if _, err := x.Invalidate(ctx, adapters.Request{Selector: byUser("bob")}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v, want the context's", err)
		}
		if d := time.Since(begin); d != time.Second {
			t.Errorf("waited %v", d)
		}
		wg.Wait()
	})
}

func TestLoginProvider(t *testing.T) {
	const link = "https://localhost/mgmt/cm/system/authn/providers/corp-ldap/9b6ee3d4-1a5c-4d5f-8a39-2c1f5d3e7b44/login"
	for name, provider := range map[string]string{"ByName": "corp-ldap", "ByLink": link} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := newTarget(t, bigiqtest.Options{Provider: "corp-ldap"}, func(c *bigiq.Config) { c.LoginProvider = provider })
				x.must(t, byUser("alice"))
				for _, r := range x.sent.Requests() {
					if r.Path == "/mgmt/shared/authn/login" && !strings.Contains(string(r.Body), `"loginReference":{"link":"`+link+`"}`) {
						t.Errorf("login %s", r.Body)
					}
				}
			})
		})
	}
	t.Run("Unknown", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{Provider: "corp-ldap"}, func(c *bigiq.Config) { c.LoginProvider = "corp-radius" })
			wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Credentials, "")
			if n := x.count("POST", "/mgmt/shared/authn/login"); n != 0 {
				t.Errorf("%d logins were tried", n)
			}
		})
	})
	t.Run("LocalNeedsNone", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{}, func(c *bigiq.Config) { c.LoginProvider = "local" })
			x.must(t, byUser("alice"))
			if n := x.count("GET", "/info/system"); n != 0 {
				t.Errorf("providers were listed %d times", n)
			}
			for _, r := range x.sent.Requests() {
				// BIG-IP's loginProviderName is refused by BIG-IQ.
				if r.Path == "/mgmt/shared/authn/login" && strings.Contains(string(r.Body), "login") {
					t.Errorf("login %s", r.Body)
				}
			}
		})
	})
}

func TestBasicAuthentication(t *testing.T) {
	for _, on := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{Basic: on}}, func(c *bigiq.Config) { c.Basic = true })
			err := x.drive(t, &run{}, byUser("alice"))
			if on {
				if err != nil {
					t.Error(err)
				}
				return
			}
			// 401 with a page: told once, and not repeated.
			wantError(t, err, adapters.Credentials, "")
			if !strings.Contains(err.Error(), "HTTP Basic") || len(x.sent.Requests()) != 1 {
				t.Errorf("error %q after %d requests", err, len(x.sent.Requests()))
			}
		})
	}
}

func TestTokenCapIsBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{Quirks: bigiqtest.Quirks{TokenCap: 1}})
		x.must(t, byUser("alice"))
		x.reopen(t)
		wantError(t, x.drive(t, &run{}, byUser("alice")), adapters.Busy, "")
		time.Sleep(5 * time.Minute)
		x.must(t, byUser("alice"))
	})
}

// Whoever waited for a caller that gave up tries for itself.
func TestACallerThatGivesUpFailsNobodyElse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := newTarget(t, bigiqtest.Options{})
		x.faults.Add(emulator.Rule{Match: emulator.On("POST", "/mgmt/shared/authn/login"), Times: 1, Fault: emulator.Hang()})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := x.Invalidate(ctx, adapters.Request{Selector: byUser("alice")}); err == nil {
				t.Error("the call outlived its deadline")
			}
		})
		synctest.Wait()
		wg.Go(func() { x.must(t, byUser("bob")) })
		wg.Wait()
	})
}
