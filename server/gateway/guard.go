package gateway

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"

	"github.com/endsession/endsession/server/api"
)

// guard refuses requests that nobody should be making, before they are routed.
func guard(next http.Handler, loopback bool) http.Handler {
	origin := http.NewCrossOriginProtection()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("Referrer-Policy", "no-referrer")

		if loopback && !isLoopback(r.Host) {
			// A page on the web may let its own host name lead here (DNS rebinding); a browser would think it the same
			// origin, but it still sends the name.
			refuse(w, http.StatusForbidden, codes.PermissionDenied,
				"this listener is for this machine only; the Host must be a loopback name or address")
			return
		}
		// Reading across origins is of no use to anybody either, so a GET is judged like a POST.
		judged := *r
		judged.Method = http.MethodPost
		if err := origin.Check(&judged); err != nil {
			refuse(w, http.StatusForbidden, codes.PermissionDenied, "cross-origin requests are refused")
			return
		}
		if !plain(r.URL.EscapedPath()) {
			refuse(w, http.StatusNotFound, codes.NotFound,
				"there is nothing at this path: paths have no escapes, empty or dotted segments")
			return
		}
		if r.Header.Get("X-HTTP-Method-Override") != "" {
			invalid(w, http.StatusBadRequest, api.Violation{Description: "X-HTTP-Method-Override is not supported"})
			return
		}
		// Only what is true is passed on about where the request came from.
		r.Header.Del("X-Forwarded-For")
		r.Header.Del("X-Forwarded-Host")
		// An Authorization that cannot be passed on as it is must not count as none: a client certificate would do then.
		// Two are refused by whoever authenticates.
		if a := r.Header["Authorization"]; slices.ContainsFunc(a, func(v string) bool { return !ascii(v) }) {
			r.Header["Authorization"] = []string{"", ""}
		}
		// A proxy in front that takes the length of a body from another header than net/http does could be made to carry a
		// second request within the first. It ends here.
		if len(r.TransferEncoding) > 0 {
			h.Set("Connection", "close")
		}
		next.ServeHTTP(timed(w), r)
	})
}

// ascii reports whether a header's value has only what gRPC takes for a text.
func ascii(value string) bool {
	return !strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r > '~' })
}

// writeTimeout is how long a client may take for each piece of an answer.
const writeTimeout = 30 * time.Second

// timed gives every write of an answer a time to end. There is no such time for the whole: a call may wait for minutes,
// and a watch has no end.
func timed(w http.ResponseWriter) http.ResponseWriter {
	return &timedWriter{ResponseWriter: w, control: http.NewResponseController(w)}
}

type timedWriter struct {
	http.ResponseWriter
	control *http.ResponseController
}

// Write writes, within the time.
func (t *timedWriter) Write(p []byte) (int, error) {
	t.limit()
	return t.ResponseWriter.Write(p)
}

// WriteHeader notes that the answer begins.
func (t *timedWriter) WriteHeader(status int) {
	t.limit()
	t.ResponseWriter.WriteHeader(status)
}

// limit is best effort: what has no deadlines is no connection.
func (t *timedWriter) limit() { _ = t.control.SetWriteDeadline(time.Now().Add(writeTimeout)) }

// Flush sends what was written.
func (t *timedWriter) Flush() { _ = t.control.Flush() }

// FlushError sends what was written.
func (t *timedWriter) FlushError() error { t.limit(); return t.control.Flush() }

// Unwrap returns the writer beneath.
func (t *timedWriter) Unwrap() http.ResponseWriter { return t.ResponseWriter }

// isLoopback reports whether a Host header names this machine from within.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	} else {
		host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Unmap().IsLoopback()
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || strings.HasSuffix(host, ".localhost")
}

// plain reports whether a path has only characters that mean themselves, and only whole segments. Every path of the API
// is so; anything else could mean one thing to a proxy on the way and another here.
func plain(path string) bool {
	if !strings.HasPrefix(path, "/") {
		return false
	}
	for segment := range strings.SplitSeq(path[1:], "/") {
		if segment == "" || segment == "." || segment == ".." {
			return path == "/"
		}
		for _, c := range []byte(segment) {
			switch {
			case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
			case c == '-', c == '.', c == '_', c == '~', c == ':':
			default:
				return false
			}
		}
	}
	return true
}

// readBody reads the body of a POST. If it answers false, it has answered the request.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, bool) {
	if encoding := r.Header.Get("Content-Encoding"); encoding != "" && !strings.EqualFold(encoding, "identity") {
		invalid(w, http.StatusUnsupportedMediaType, api.Violation{Description: "Content-Encoding is not supported"})
		return nil, false
	}
	types := r.Header.Values("Content-Type")
	if len(types) > 1 || len(types) == 1 && !isJSON(types[0]) {
		return nil, wrongType(w)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, api.MaxMessage))
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		invalid(w, http.StatusRequestEntityTooLarge, api.Violation{Description: "the body is larger than 1 MiB"})
		return nil, false
	case err != nil:
		invalid(w, http.StatusBadRequest, api.Violation{Description: "the body did not arrive"})
		return nil, false
	case len(body) > 0 && len(types) == 0:
		return nil, wrongType(w)
	}
	return body, true
}

func wrongType(w http.ResponseWriter) bool {
	invalid(w, http.StatusUnsupportedMediaType, api.Violation{Description: "Content-Type must be application/json"})
	return false
}

// isJSON reports whether a content type is application/json, in UTF-8 if it says so.
func isJSON(contentType string) bool {
	media, params, err := mime.ParseMediaType(contentType)
	if err != nil || media != "application/json" {
		return false
	}
	charset, ok := params["charset"]
	return len(params) == 0 || ok && len(params) == 1 && strings.EqualFold(charset, "utf-8")
}
