package peers

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// Access is who may ask under a path.
type Access int

const (
	// Anyone may ask: the answer does not depend on the sender.
	Anyone Access = iota
	// Members may ask, and senders that do not name themselves: etcd's members do not on every
	// path. A path that changes something, or reveals a lease's keys, has at least this access.
	Members
	// NamedMembers may ask: members that name themselves. Belay's own paths have this access.
	NamedMembers
)

// A Guard restricts next to members, by the headers of a request; anonymous lets in senders that do
// not name themselves.
type Guard func(next http.Handler, anonymous bool) http.Handler

// A Mux is what a member's peer port serves. The parts of the member that answer register their
// paths before it serves; any other path gets 404.
type Mux struct {
	mux   *http.ServeMux
	guard Guard
}

// NewMux makes a Mux. guard nil: everybody is let in.
func NewMux(guard Guard) *Mux {
	if guard == nil {
		guard = func(next http.Handler, _ bool) http.Handler { return next }
	}
	m := &Mux{mux: http.NewServeMux(), guard: guard}
	m.mux.HandleFunc("/", http.NotFound)
	// A stranger does not learn which of these exist.
	m.handle(PathBelay, NamedMembers, http.NotFoundHandler())
	return m
}

// Handle makes h answer path, and everything below it if it ends with a slash. Any other method
// than the given one gets 405 after the guard; "": h takes any method.
func (m *Mux) Handle(path, method string, who Access, h http.HandlerFunc) {
	if method == "" {
		m.handle(path, who, h)
		return
	}
	m.handle(path, who, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if AllowMethod(w, r, method) {
			h(w, r)
		}
	}))
}

func (m *Mux) handle(path string, who Access, h http.Handler) {
	if who != Anyone {
		h = m.guard(h, who == Members)
	}
	m.mux.Handle(path, h)
}

// ServeHTTP implements http.Handler.
func (m *Mux) ServeHTTP(w http.ResponseWriter, r *http.Request) { m.mux.ServeHTTP(w, r) }

// AllowMethod answers any other method with 405 and returns false.
func AllowMethod(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

// ForCluster refuses a request that says it is for another cluster than this one, as etcd does, and
// returns false. own is this cluster's id in hexadecimal; empty: it is not known.
func ForCluster(w http.ResponseWriter, r *http.Request, own string) bool {
	if id := r.Header.Get(HeaderCluster); id == "" || own == "" || id == own {
		return true
	}
	http.Error(w, "cluster ID mismatch", http.StatusPreconditionFailed)
	return false
}

// MaxQuestionBytes bounds the body of a question.
const MaxQuestionBytes = 64 << 10

// ReadQuestion reads the body of a question of at most limit bytes. If it returns false, it has
// answered.
func ReadQuestion(w http.ResponseWriter, r *http.Request, limit int64) ([]byte, bool) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if err == nil {
		return body, true
	}
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		http.Error(w, "request body too large", http.StatusRequestEntityTooLarge)
	} else {
		http.Error(w, "error reading body", http.StatusBadRequest)
	}
	return nil, false
}

// AnswerJSON answers 200 with v as JSON.
func AnswerJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, "application/json", b)
}

// AnswerProto answers 200 with an encoded message.
func AnswerProto(w http.ResponseWriter, message []byte) { answer(w, "application/protobuf", message) }

func answer(w http.ResponseWriter, contentType string, body []byte) {
	w.Header().Set("Content-Type", contentType)
	_, _ = w.Write(body) // the sender has left
}
