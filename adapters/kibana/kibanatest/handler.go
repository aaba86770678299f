package kibanatest

import (
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"

	"github.com/endsession/endsession/adapters/emulator"
)

const (
	invalidatePath = "/api/security/session/_invalidate"
	loginStatePath = "/internal/security/login_state"
	statusPath     = "/api/status"
)

// ServeHTTP implements [http.Handler]. The checks come in Kibana's order: start-up, rate limiter, authentication, payload,
// headers, restricted routes, privilege, and only then the schema of the body.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	trouble := s.trouble
	s.mu.Unlock()

	w.Header().Set("kbn-name", "kibanatest")
	if trouble == NotReady {
		w.Header().Set("Retry-After", "30")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte("Kibana server is not ready yet"))
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, s.options.BasePath)
	if !ok {
		refuse(w, http.StatusNotFound, "Not Found")
		return
	}
	// A space is taken off the path; it narrows nothing here.
	if space, ok := strings.CutPrefix(path, "/s/"); ok {
		if _, rest, ok := strings.Cut(space, "/"); ok {
			path = "/" + rest
		}
	}
	switch {
	case path == invalidatePath && r.Method == http.MethodPost && !s.options.ExcludeRoute:
		s.invalidate(w, r, trouble)
	case path == loginStatePath && r.Method == http.MethodGet:
		s.loginState(w, r, trouble)
	case path == statusPath && r.Method == http.MethodGet:
		s.status(w, r, trouble)
	default:
		refuse(w, http.StatusNotFound, "Not Found")
	}
}

// refuse answers with an error in the form that all of Kibana's have.
func refuse(w http.ResponseWriter, status int, message string) {
	answer(w, status, map[string]any{"statusCode": status, "error": http.StatusText(status), "message": message})
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	emulator.WriteJSON(w, status, v)
}

func overloaded(w http.ResponseWriter, trouble Trouble) bool {
	if trouble == Overloaded {
		refuse(w, http.StatusTooManyRequests, "Server is overloaded")
	}
	return trouble == Overloaded
}

// authenticate returns the account of the request, or answers.
func (s *Server) authenticate(w http.ResponseWriter, r *http.Request, trouble Trouble) (Account, bool) {
	switch trouble {
	case NoLicense:
		w.Header().Set("Retry-After", "30")
		refuse(w, http.StatusServiceUnavailable,
			"License information could not be obtained from Elasticsearch. Please check the logs for further details.")
		return Account{}, false
	case NotInitialized:
		w.Header().Set("Retry-After", "30")
		refuse(w, http.StatusServiceUnavailable, "Authentication sub-system is not fully initialized yet.")
		return Account{}, false
	}
	if s.options.SecurityDisabled {
		return Account{Superuser: true}, true
	}
	scheme, credentials, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	scheme = strings.ToLower(scheme)
	if s.options.HTTPAuthenticationDisabled || !s.accepts(scheme) {
		refuse(w, http.StatusUnauthorized, "Unauthorized")
		return Account{}, false
	}
	for _, a := range s.options.Accounts {
		want := ""
		switch {
		case scheme == "apikey" && a.APIKey != "":
			want = base64.StdEncoding.EncodeToString([]byte(a.APIKey))
		case scheme == "bearer":
			want = a.BearerToken
		case scheme == "basic" && a.Username != "":
			want = base64.StdEncoding.EncodeToString([]byte(a.Username + ":" + a.Password))
		}
		if want != "" && subtle.ConstantTimeCompare([]byte(want), []byte(credentials)) == 1 {
			return a, true
		}
	}
	// Elasticsearch's own message, which names whom it could not authenticate.
	w.Header().Set("WWW-Authenticate", `Basic realm="security" charset="UTF-8", ApiKey`)
	refuse(w, http.StatusUnauthorized, fmt.Sprintf(
		"[security_exception\n\tRoot causes:\n\t\tsecurity_exception: unable to authenticate with provided credentials [%s %s]]: unable to authenticate with provided credentials",
		scheme, credentials))
	return Account{}, false
}

// accepts reports whether a scheme is one of those Kibana looks at: two always, and those of the configured providers
// (xpack.security.authc.http.schemes and autoSchemesEnabled).
func (s *Server) accepts(scheme string) bool {
	if scheme == "apikey" || scheme == "bearer" {
		return true
	}
	for _, p := range s.options.Providers {
		if p.Type == scheme {
			return scheme == "basic"
		}
	}
	return false
}

func (s *Server) invalidate(w http.ResponseWriter, r *http.Request, trouble Trouble) {
	if overloaded(w, trouble) {
		return
	}
	account, ok := s.authenticate(w, r, trouble)
	if !ok {
		return
	}
	payload, ok := readPayload(w, r)
	if !ok || !s.headers(w, r) {
		return
	}
	if s.options.Serverless && r.Header.Get("x-elastic-internal-origin") == "" {
		refuse(w, http.StatusBadRequest, fmt.Sprintf(
			"uri [%s] with method [post] exists but is not available with the current configuration", r.URL.Path))
		return
	}
	if !account.Superuser {
		message := "API [POST " + invalidatePath + "] is unauthorized for user, this action is granted by the Kibana privileges [superuser]"
		if s.options.Legacy {
			message = "Forbidden"
		}
		refuse(w, http.StatusForbidden, message)
		return
	}
	filter, problem := validate(payload)
	if problem != "" {
		refuse(w, http.StatusBadRequest, problem)
		return
	}
	opaque := "An internal server error occurred. Check Kibana server logs for details."
	if trouble == ElasticsearchDown {
		refuse(w, http.StatusInternalServerError, opaque)
		return
	}
	total, conflict := s.deleteByQuery(filter.match)
	if conflict {
		refuse(w, http.StatusInternalServerError, opaque)
		return
	}
	answer(w, http.StatusOK, map[string]any{"total": total})
}

// readPayload parses the body before anything looks at it.
func readPayload(w http.ResponseWriter, r *http.Request) (any, bool) {
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		refuse(w, http.StatusUnsupportedMediaType, "Unsupported Media Type")
		return nil, false
	}
	body, err := emulator.ReadBody(r)
	if err != nil {
		refuse(w, http.StatusRequestEntityTooLarge, "Payload content length greater than maximum allowed")
		return nil, false
	}
	if len(body) == 0 {
		return nil, true
	}
	var payload any
	if json.Unmarshal(body, &payload) != nil {
		refuse(w, http.StatusBadRequest, "Invalid request payload JSON format")
		return nil, false
	}
	return payload, true
}

// headers checks what every changing route asks for. A header counts by its presence, whatever its value.
func (s *Server) headers(w http.ResponseWriter, r *http.Request) bool {
	_, xsrf := r.Header["Kbn-Xsrf"]
	version, versioned := r.Header["Kbn-Version"]
	if !xsrf && !versioned {
		refuse(w, http.StatusBadRequest, "Request must contain a kbn-xsrf header.")
		return false
	}
	if versioned && version[0] != "" && version[0] != s.options.Version {
		answer(w, http.StatusBadRequest, map[string]any{
			"statusCode": http.StatusBadRequest, "error": "Bad Request",
			"message": fmt.Sprintf("Browser client is out of date, please refresh the page (%q header was %q but should be %q)",
				"kbn-version", version[0], s.options.Version),
			"attributes": map[string]string{"expected": s.options.Version, "got": version[0]},
		})
		return false
	}
	return true
}

// loginState is what the login page asks before anybody has signed in.
func (s *Server) loginState(w http.ResponseWriter, r *http.Request, trouble Trouble) {
	if overloaded(w, trouble) {
		return
	}
	if s.options.RestrictInternalAPIs && r.Header.Get("x-elastic-internal-origin") == "" {
		refuse(w, http.StatusBadRequest, fmt.Sprintf(
			"uri [%s] with method [get] exists but is not available with the current configuration", r.URL.Path))
		return
	}
	providers := []any{}
	for _, p := range s.options.Providers {
		form := p.Type == "basic" || p.Type == "token"
		providers = append(providers, map[string]any{
			"type": p.Type, "name": p.Name, "usesLoginForm": form, "showInSelector": true,
		})
	}
	answer(w, http.StatusOK, map[string]any{
		"allowLogin": true, "layout": "form", "requiresSecureConnection": true,
		"selector": map[string]any{"enabled": len(providers) > 1, "providers": providers},
	})
}

// status is https://www.elastic.co/docs/api/doc/kibana/operation/operation-get-status, shortened to what tells something.
func (s *Server) status(w http.ResponseWriter, r *http.Request, trouble Trouble) {
	if overloaded(w, trouble) {
		return
	}
	if _, ok := s.authenticate(w, r, trouble); !ok {
		return
	}
	level, code := "available", http.StatusOK
	if trouble == ElasticsearchDown {
		level, code = "unavailable", http.StatusServiceUnavailable
	}
	answer(w, code, map[string]any{
		"name":    "kibanatest",
		"version": map[string]any{"number": s.options.Version, "build_flavor": "traditional"},
		"status": map[string]any{
			"overall": map[string]any{"level": level, "summary": "emulated"},
			"core":    map[string]any{"elasticsearch": map[string]any{"level": level}, "savedObjects": map[string]any{"level": level}},
		},
	})
}
