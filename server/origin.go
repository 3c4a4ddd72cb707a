package server

import (
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/gorilla/websocket"
	"google.golang.org/grpc/codes"
)

// Browsers send requests for any page that they show, for example to a member on a developer's own
// machine. A simple request needs no permission: a form, or a fetch whose content type a form could
// have too, is sent without CORS's preflight; only the answer is kept from the page. By then a put
// has happened. WebSockets have no preflight at all. So these two check where a request comes from.
//
// A browser says so in headers that a page cannot set; other programs do not send them, and are not
// restricted. curl -d is such a program, with the content type of a form: the type alone would not
// be enough.

// crossOrigin reports whether a page of another origin than the one that is asked sent the request,
// and which, as far as it says so. The rules are those of net/http.CrossOriginProtection.
func crossOrigin(r *http.Request) (origin string, cross bool) {
	origin = r.Header.Get("Origin")
	switch r.Header.Get("Sec-Fetch-Site") {
	case "same-origin", "none": // none: not from a page but from the user
		return origin, false
	case "":
	default:
		return origin, true
	}
	// Either not a browser, or one that is older than the header, or plain HTTP, where the header
	// is sent only to the same machine.
	if origin == "" {
		return "", false
	}
	u, err := url.Parse(origin)
	// "null" is a hidden origin.
	return origin, err != nil || u.Host == "" || !strings.EqualFold(u.Host, r.Host)
}

// preflighted reports whether a browser asks before it sends a request of the content type to
// another origin: it does unless a form could have it, or there is none.
func preflighted(contentType string) bool {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		return false
	}
	switch media {
	case "application/x-www-form-urlencoded", "multipart/form-data", "text/plain":
		return false
	}
	return true
}

const (
	simpleRequest = "a page of another origin has sent this request with a content type that needs nobody's leave; " +
		"send it as application/json, or name the origin with --cors, or set --cors-simple-requests"
	websocketOrigin = "a page of another origin has asked for a websocket; name its origin with --cors"
)

// fromElsewhere refuses what a page of another origin must not send to the gateway, and says
// whether it has.
func (a *accessControl) fromElsewhere(w http.ResponseWriter, r *http.Request) bool {
	origin, cross := crossOrigin(r)
	if !cross {
		return false
	}
	switch {
	case websocket.IsWebSocketUpgrade(r):
		if !allowed(a.cors, "*") && !a.originNamed(origin) {
			gatewayError(w, http.StatusForbidden, websocketOrigin)
			return true
		}
	case r.Method == http.MethodGet || r.Method == http.MethodHead: // the gateway has none that change anything
	case a.simpleRequests || a.originNamed(origin) || preflighted(r.Header.Get("Content-Type")):
	default:
		gatewayError(w, http.StatusUnsupportedMediaType, simpleRequest)
		return true
	}
	return false
}

// gatewayError answers with an error in the gateway's form.
func gatewayError(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": codes.PermissionDenied, "message": text}) // the client has left
}
