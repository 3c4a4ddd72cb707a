package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// target is what the attacker's process is told.
type target struct {
	Attack    string
	Client    string   // host:port of the member that is attacked
	Clients   []string // of all members, the attacked one first
	Peer      string   // host:port
	Metrics   string   // host:port, of rows that have the port
	CA        string   // file of the authority, if the client port speaks TLS
	Token     string   // of the attacker, if the row gives it one
	ClusterID uint64
	Members   []uint64 // the attacked one first
	Quick     bool     // less of everything, for a second
}

// sized is full, or quick in the quick test.
func (t *target) sized(full, quick int) int {
	if t.Quick {
		return quick
	}
	return full
}

// outcome is what the attacker's process reports at its end.
type outcome struct {
	Done    int64  // how often the attacker did what it does
	Refused int64  // how often it could not
	Error   string // the last of these
}

// counter counts what an attack's goroutines do.
type counter struct {
	done, refused atomic.Int64
	mu            sync.Mutex
	last          error
}

func (c *counter) count(err error) {
	if err == nil {
		c.done.Add(1)
		return
	}
	c.refused.Add(1)
	c.mu.Lock()
	c.last = err
	c.mu.Unlock()
}

// swarm runs do in n goroutines, again and again until ctx ends.
func (c *counter) swarm(ctx context.Context, n int, do func(ctx context.Context, i int) error) {
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			for ctx.Err() == nil {
				err := do(ctx, i)
				if ctx.Err() != nil && err != nil {
					return
				}
				if c.count(err); err != nil {
					pause(ctx, 20*time.Millisecond)
				}
			}
		})
	}
	wg.Wait()
}

// paced starts do perSecond times a second until ctx ends, whether earlier calls have ended or not.
func (c *counter) paced(ctx context.Context, perSecond int, do func(ctx context.Context) error) {
	tick := time.NewTicker(time.Second / time.Duration(perSecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			go func() { c.count(do(ctx)) }()
		}
	}
}

// pause is the time between two requests, not a wait for something.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

const childVariable = "BELAY_ABUSE_CHILD"

// beChild runs the attack, if this is the attacker's process, until its standard input ends, which
// happens when its parent ends.
func beChild() {
	text := os.Getenv(childVariable)
	if text == "" {
		return
	}
	var t target
	var result outcome
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		result.Error = err.Error()
	} else if a, ok := find(t.Attack); !ok {
		result.Error = "no attack " + t.Attack
	} else {
		_ = syscall.Setpriority(syscall.PRIO_PROCESS, 0, 10)
		ctx, cancel := context.WithCancel(context.Background())
		go func() { _, _ = io.Copy(io.Discard, os.Stdin); cancel() }()
		var c counter
		ended := make(chan error, 1)
		go func() { ended <- a.do(ctx, &t, &c) }()
		select {
		case err = <-ended:
		case <-ctx.Done():
			select { // calls that hang end with the process
			case err = <-ended:
			case <-time.After(2 * time.Second):
			}
		}
		if err != nil {
			c.count(err)
		}
		c.mu.Lock()
		result.Done, result.Refused = c.done.Load(), c.refused.Load()
		if c.last != nil {
			result.Error = c.last.Error()
		}
		c.mu.Unlock()
	}
	_ = json.NewEncoder(os.Stdout).Encode(result)
	os.Exit(0)
}

// assault runs the attacker's process for a while.
func assault(ctx context.Context, t target, length time.Duration) (outcome, error) {
	var result outcome
	text, err := json.Marshal(t)
	if err != nil {
		return result, err
	}
	self, err := os.Executable()
	if err != nil {
		return result, err
	}
	var out, errors bytes.Buffer
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childVariable+"="+string(text))
	cmd.Stdout, cmd.Stderr = &out, &errors
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return result, err
	}
	if err := cmd.Start(); err != nil {
		return result, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(length):
		stdin.Close()
		select {
		case err = <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			err = <-ended
		}
	}
	if err != nil {
		return result, fmt.Errorf("the attacker's process: %w: %.500s", err, errors.String())
	}
	return result, json.Unmarshal(out.Bytes(), &result)
}
