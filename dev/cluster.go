package dev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	healthInterval = 100 * time.Millisecond // between two looks at a member that is not healthy yet
	slowStart      = 30 * time.Second       // after which the user is told what is being waited for
)

// A process is a member that was started. Its fields belong to the loop, supervise.
type process struct {
	member
	args    []string
	cmd     *exec.Cmd
	stopped context.CancelFunc // ends its health check
	healthy bool
	ended   bool
	asked   bool // we told it to stop
	logs    []*prefixer
}

// Run starts a cluster and returns when all of it has ended: nil if it was stopped and no member failed.
func Run(opts Options) error {
	if err := opts.validate(); err != nil {
		return err
	}
	if opts.Grace == 0 {
		opts.Grace = 10 * time.Second
	}
	dir, err := filepath.Abs(opts.DataDir) // so that the command that restarts a member works from anywhere
	if err != nil {
		return err
	}
	opts.DataDir = dir
	members := opts.members()
	if err := opts.prepare(members); err != nil {
		return err
	}

	// The kernel's promise to stop members with us is tied to the thread that starts them.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	c := &cluster{opts: opts, ended: make(chan *process), healthy: make(chan *process)}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range members {
		if err := c.start(ctx, members, i); err != nil {
			c.stop()
			return err
		}
	}
	return c.supervise()
}

type cluster struct {
	opts      Options
	mu        sync.Mutex // serialises output
	processes []*process
	ended     chan *process // a process ended
	healthy   chan *process // a process answered its first health check
	failures  int           // processes that ended unasked, or had to be killed
}

// say prints a line of our own.
func (c *cluster) say(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.opts.Stdout, format+"\n", args...)
}

func (c *cluster) start(ctx context.Context, members []member, i int) error {
	p := &process{member: members[i], args: c.opts.args(members, i)}
	width := len(members[len(members)-1].name)
	stream := func() *prefixer {
		log := &prefixer{mu: &c.mu, w: c.opts.Stderr, prefix: memberPrefix(i, p.name, width, c.opts.Colour)}
		p.logs = append(p.logs, log)
		return log
	}
	p.cmd = exec.Command(c.opts.Program, p.args...)
	p.cmd.Env = environ(p.args)
	p.cmd.Stdout, p.cmd.Stderr = stream(), stream()
	p.cmd.SysProcAttr = detached()
	p.cmd.WaitDelay = time.Second // should a grandchild hold the log open
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", p.name, err)
	}
	ctx, p.stopped = context.WithCancel(ctx)
	c.processes = append(c.processes, p)
	go func() {
		// How it ended is in ProcessState, which the loop reads after this.
		_ = p.cmd.Wait()
		for _, log := range p.logs {
			log.flush()
		}
		c.ended <- p
	}()
	go func() {
		// A member logs each time that /health finds it without a leader, and a new one has none: first its cluster's
		// version, which is agreed on with the first leader.
		if await(ctx, p.clientURL()+"/version", func(body []byte) bool { return !bytes.Contains(body, []byte("not_decided")) }) &&
			await(ctx, p.clientURL()+"/health", func(body []byte) bool { return bytes.Contains(body, []byte(`"true"`)) }) {
			select {
			case c.healthy <- p:
			case <-ctx.Done():
			}
		}
	}()
	return nil
}

// await asks until the answer is good, or ctx ends.
func await(ctx context.Context, url string, good func(body []byte) bool) bool {
	client := &http.Client{Timeout: 2 * time.Second}
	defer client.CloseIdleConnections()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return false
		}
		if resp, err := client.Do(req); err == nil {
			body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK && good(body) {
				return true
			}
		}
		select {
		case <-time.After(healthInterval):
		case <-ctx.Done():
			return false
		}
	}
}

// supervise is the loop that owns all state while the cluster runs.
func (c *cluster) supervise() error {
	ready := false
	slow := time.NewTimer(slowStart)
	defer slow.Stop()
	for {
		select {
		case <-c.opts.Interrupts:
			c.say("stopping %d members (once more to kill them)", c.running())
			c.stop()
			return c.verdict()
		case p := <-c.healthy:
			p.healthy = true
		case p := <-c.ended:
			c.note(p)
			if c.running() == 0 {
				return c.verdict()
			}
		case <-slow.C:
			for _, p := range c.processes {
				if !p.ended && !p.healthy {
					c.say("%s is not healthy after %s; its log says why", p.name, slowStart)
				}
			}
		}
		if !ready && c.allHealthy() {
			ready = true
			slow.Stop()
			c.greet()
		}
	}
}

func (c *cluster) running() (n int) {
	for _, p := range c.processes {
		if !p.ended {
			n++
		}
	}
	return n
}

// allHealthy is whether all members that run are healthy.
func (c *cluster) allHealthy() bool {
	for _, p := range c.processes {
		if !p.ended && !p.healthy {
			return false
		}
	}
	return true
}

// greet says how to use the cluster.
func (c *cluster) greet() {
	var text strings.Builder
	var endpoints []string
	fmt.Fprintf(&text, "\nThe cluster is ready:\n")
	for _, p := range c.processes {
		if p.ended {
			continue
		}
		endpoints = append(endpoints, p.client())
		fmt.Fprintf(&text, "  %s  clients %s  peers %s  data %s  pid %d\n", p.name, p.clientURL(), p.peerURL(), p.dataDir, p.cmd.Process.Pid)
	}
	fmt.Fprintf(&text, "\nIn another terminal:\n")
	fmt.Fprintf(&text, "  export ETCDCTL_ENDPOINTS=%s\n", strings.Join(endpoints, ","))
	fmt.Fprintf(&text, "  belay ctl put hello world\n")
	fmt.Fprintf(&text, "  belay ctl endpoint status -w table\n")
	fmt.Fprintf(&text, "\nCtrl-C stops all members. Their data stays in %s; --clean starts afresh.\n", c.opts.DataDir)
	c.say("%s", text.String())
}

// note records that a process ended, and says so unless it was asked to.
func (c *cluster) note(p *process) {
	p.ended = true
	p.stopped()
	state := p.cmd.ProcessState
	if p.asked {
		return
	}
	c.failures++
	how := fmt.Sprintf("with exit code %d", state.ExitCode())
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		how = fmt.Sprintf("by signal %d (%s)", status.Signal(), status.Signal())
	}
	rest := fmt.Sprintf("%d of %d members still run", c.running(), len(c.processes))
	if n := c.running(); n > 0 && n <= len(c.processes)/2 {
		rest += ", too few for a quorum: reads and writes wait until another is back"
	}
	c.say("\n%s ended %s; its log is above. %s.\nTo start it again, in another terminal:\n  %s\n", p.name, how, rest, commandLine(c.opts.Program, p.args))
}

// stop ends all members, the last started first, each before the next: the others see it leave in order.
func (c *cluster) stop() {
	for _, p := range c.processes {
		for _, log := range p.logs {
			log.hush()
		}
	}
	hurry := false // a second interrupt came
	for i := len(c.processes) - 1; i >= 0; i-- {
		p := c.processes[i]
		if p.ended {
			continue
		}
		p.asked = true
		p.stopped()
		if hurry {
			c.kill(p)
		} else if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.kill(p) // there is no SIGTERM on this system
		}
		grace := time.NewTimer(c.opts.Grace)
		for !p.ended {
			select {
			case q := <-c.ended:
				c.note(q)
			case <-c.healthy:
			case <-c.opts.Interrupts:
				hurry = true
				c.kill(p)
			case <-grace.C:
				c.failures++
				for _, log := range p.logs {
					log.reveal()
				}
				c.say("%s did not stop within %s: killing it", p.name, c.opts.Grace)
				c.kill(p)
			}
		}
		grace.Stop()
		c.say("%s stopped", p.name)
	}
}

func (c *cluster) kill(p *process) {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		c.say("cannot kill %s (pid %d): %v", p.name, p.cmd.Process.Pid, err)
	}
}

func (c *cluster) verdict() error {
	switch {
	case c.failures == 0:
		return nil
	case c.failures == 1:
		return errors.New("a member failed, see above")
	}
	return fmt.Errorf("%d members failed, see above", c.failures)
}

// commandLine is a command as one would type it.
func commandLine(program string, args []string) string {
	words := make([]string, 0, len(args)+1)
	for _, word := range append([]string{program}, args...) {
		if word == "" || strings.ContainsAny(word, " \t\n\"'\\$`&|;<>()*?[]#~!{}") {
			word = shellQuote(word)
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func shellQuote(s string) string {
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
