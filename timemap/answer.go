package timemap

import (
	"fmt"
	"net/url"
	"strconv"
	"time"
)

// Path is where a member's client and metrics ports answer questions to its map.
const Path = "/debug/belay/revisions"

// MaxQuestions is how many times and revisions one request may ask about.
const MaxQuestions = 1000

// An Answer is what a member knows, as JSON.
type Answer struct {
	Name string    `json:"name"` // of the member
	Now  time.Time `json:"now"`  // its clock
	// Span is how far back the map reaches, and the newest revision.
	Span Interval   `json:"span"`
	At   []AnswerAt `json:"at,omitempty"` // in the order of the questions
	Of   []AnswerOf `json:"of,omitempty"` // in the order of the questions
}

// AnswerAt is what was the newest revision at a time; see Map.At.
type AnswerAt struct {
	Time time.Time `json:"time"`
	Interval
}

// AnswerOf is when a revision was written; see Map.Of.
type AnswerOf struct {
	Revision int64 `json:"revision"`
	Interval
}

// Answer answers a query: at=TIME (RFC 3339) and of=REVISION, each as often as one likes, up to
// MaxQuestions in all. The error says what is wrong with the query.
func (m *Map) Answer(name string, query url.Values) (a Answer, err error) {
	if len(query["at"])+len(query["of"]) > MaxQuestions {
		return a, fmt.Errorf("more than %d questions in one request", MaxQuestions)
	}
	a = Answer{Name: name, Now: time.Now().UTC(), Span: m.Span()}
	for _, text := range query["at"] {
		t, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return a, fmt.Errorf("at must be a time such as 2006-01-02T15:04:05Z, not %q", text)
		}
		a.At = append(a.At, AnswerAt{t, m.At(t)})
	}
	for _, text := range query["of"] {
		rev, err := strconv.ParseInt(text, 10, 64)
		if err != nil || rev <= 0 {
			return a, fmt.Errorf("of must be a revision, not %q", text)
		}
		a.Of = append(a.Of, AnswerOf{rev, m.Of(rev)})
	}
	return a, nil
}
