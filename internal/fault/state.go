package fault

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"
)

// A State is all that is broken around one member. The zero State is a member that is well.
type State struct {
	Links map[string]Link `json:"links,omitempty"` // by host:port of the other member's peer URL
	Log   Disk            `json:"log"`             // under the raft log
	Store Disk            `json:"store"`           // under everything else in the data directory
}

// A Link is the connections that this member dials to another one.
type Link struct {
	Out Way `json:"out"` // from this member
	In  Way `json:"in"`  // to it
}

// A Way is one direction of a link.
type Way struct {
	Cut   bool          `json:"cut,omitempty"`   // nothing arrives until it is whole again
	Delay time.Duration `json:"delay,omitempty"` // nanoseconds, one way
	Loss  float64       `json:"loss,omitempty"`  // 0 to 1: what part of the packets is sent again, once or more often
}

// A Disk is how files behave.
type Disk struct {
	Delay time.Duration `json:"delay,omitempty"` // nanoseconds that each sync takes longer
	Stall bool          `json:"stall,omitempty"` // no sync ends
	Full  bool          `json:"full,omitempty"`  // no file gets longer
}

// Tell writes a State in the form that Attach and Follow read: a line of JSON.
func Tell(w io.Writer, s State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}

// A Layer holds what is broken around this process's member, as last told.
type Layer struct {
	mu      sync.Mutex
	state   State
	changed chan struct{} // closed and replaced whenever state is

	told *bufio.Reader
}

// maxLine bounds what the supervisor says at once, bytes.
const maxLine = 1 << 20

// Attach makes a Layer of the supervisor's pipe. It waits for the first State, and fails if what
// comes is none.
func Attach(pipe io.Reader) (*Layer, error) {
	l := &Layer{changed: make(chan struct{}), told: bufio.NewReaderSize(pipe, maxLine)}
	if err := l.next(); err != nil {
		return nil, fmt.Errorf("the supervisor does not say what is broken: %w", err)
	}
	return l, nil
}

// New makes a Layer that breaks nothing before Set is called: for members in one process with who
// breaks them.
func New() *Layer { return &Layer{changed: make(chan struct{})} }

// Follow takes on what the supervisor says until it is gone: the last word holds on.
func (l *Layer) Follow() {
	for l.next() == nil {
	}
}

func (l *Layer) next() error {
	line, err := l.told.ReadSlice('\n')
	if err != nil {
		if errors.Is(err, io.EOF) && len(line) > 0 {
			err = io.ErrUnexpectedEOF
		}
		return err
	}
	var s State
	if err := json.Unmarshal(line, &s); err != nil {
		return err
	}
	l.Set(s)
	return nil
}

// Set has s hold from now on.
func (l *Layer) Set(s State) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.state = s
	close(l.changed)
	l.changed = make(chan struct{})
}

// get returns the State, and a channel that closes when there is another one.
func (l *Layer) get() (State, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.state, l.changed
}
