package peers

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
)

// Access says who may ask under a path.
type Access int

const (
	// Anyone may ask: what is told, or judged, without knowing who asks.
	Anyone Access = iota
	// Members may ask, and who does not say who it is: members of etcd do not on each path. What changes
	// something, or tells of a lease's keys, is at least of this kind.
	Members
	// NamedMembers may ask, who say which member they are: Belay's own paths.
	NamedMembers
)

// A Guard serves to members alone, by what the headers of a request say, what next serves; anonymous
// lets in who says nothing.
type Guard func(next http.Handler, anonymous bool) http.Handler

// A Mux is what a member's peer port serves. The parts of the member that answer register their paths,
// before it serves; what nobody registered is answered with 404.
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
	// A stranger is not told which of these there are.
	m.handle(PathBelay, NamedMembers, http.NotFoundHandler())
	return m
}

// Handle has h answer path, and all below it where it ends with a slash. Another method than the given
// one is answered with 405 after the guard; "": h takes any.
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

// AllowMethod answers any other method with 405 and says false.
func AllowMethod(w http.ResponseWriter, r *http.Request, method string) bool {
	if r.Method == method {
		return true
	}
	w.Header().Set("Allow", method)
	http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
	return false
}

// MaxQuestionBytes bounds the body of a question.
const MaxQuestionBytes = 64 << 10

// ReadQuestion reads the body of a question of at most limit bytes. When it says false it has answered.
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
	_, _ = w.Write(body) // who asked has left: nobody to tell
}
