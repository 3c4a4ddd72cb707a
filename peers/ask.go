package peers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"strings"
)

// DefaultAnswerBytes bounds the answer to a question that sets no bound.
const DefaultAnswerBytes = 64 << 10

// A Question is one HTTP request to a member.
type Question struct {
	Method string // [GET]
	Path   string // begins with a slash
	Header http.Header
	Body   []byte
	// MaxAnswer bounds the body of the answer, in bytes [DefaultAnswerBytes]. A
	// longer one is an error.
	MaxAnswer int64
}

// An Answer is a member's answer, with any status.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	URL    string // that was asked, with the path
	Fresh  bool   // it came over a connection that was opened for it
}

// OK is nil for status 200, and otherwise an error with the answer.
func (a Answer) OK() error {
	if a.Status == http.StatusOK {
		return nil
	}
	return fmt.Errorf("%s answered %d %s: %.100s", a.URL, a.Status, http.StatusText(a.Status), bytes.TrimSpace(a.Body))
}

// ErrNoURL is the error of asking a member without known URLs.
var ErrNoURL = errors.New("the member has no peer URLs")

// At asks under one peer URL. The error is nil for any answer that was read completely.
func At(ctx context.Context, client *http.Client, peerURL string, q Question) (Answer, error) {
	a := Answer{URL: strings.TrimSuffix(peerURL, "/") + q.Path}
	method, limit := q.Method, q.MaxAnswer
	if method == "" {
		method = http.MethodGet
	}
	if limit == 0 {
		limit = DefaultAnswerBytes
	}
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(c httptrace.GotConnInfo) { a.Fresh = !c.Reused }})
	req, err := http.NewRequestWithContext(ctx, method, a.URL, bytes.NewReader(q.Body))
	if err != nil {
		return a, err
	}
	for k, v := range q.Header {
		req.Header[http.CanonicalHeaderKey(k)] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	a.Status, a.Header = resp.StatusCode, resp.Header
	a.Body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err == nil && int64(len(a.Body)) > limit {
		err = fmt.Errorf("the answer of %s exceeds %d bytes", a.URL, limit)
	}
	return a, err
}

// Ask asks under one URL after the other until take returns nil; its error is the last one.
func Ask(ctx context.Context, client *http.Client, peerURLs []string, q Question, take func(Answer) error) error {
	last := ErrNoURL
	for _, u := range peerURLs {
		a, err := At(ctx, client, u, q)
		if err == nil {
			err = take(a)
		}
		if err == nil {
			return nil
		}
		last = err
	}
	return last
}

// NewClient is a client for questions to members. It follows no redirect: no member sends one, and
// an impostor must not choose who is asked. It has no timeout of its own.
func NewClient(rt http.RoundTripper) *http.Client {
	return &http.Client{Transport: rt, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}
