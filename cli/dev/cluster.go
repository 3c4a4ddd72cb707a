package dev

import (
	"bufio"
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
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/belaydb/belay/internal/fault"
)

// MemberCommand is the word behind "belay dev" that makes a process one of its members.
const MemberCommand = "member"

const (
	healthInterval = 100 * time.Millisecond // between two looks at a member that is not healthy yet
	slowStart      = 30 * time.Second       // after which the user is told what the start waits for
)

// A process is a member that was started. Its fields are owned by the loop, supervise.
type process struct {
	member
	args    []string
	cmd     *exec.Cmd
	stopped context.CancelFunc // ends its health check
	healthy bool
	ended   bool
	asked   bool             // it was told to stop
	again   bool             // it ran before in this cluster
	restart bool             // to be started again when it has ended
	paused  bool             // it was stopped as it is (SIGSTOP)
	tell    chan fault.State // what is broken around it, for the goroutine that tells it; closed when it has ended
	logs    []*prefixer
	view    *view    // nil: lines are shown as they are
	file    *os.File // the whole log, with a view
}

// defaultColumns is the width of a terminal that does not report it.
const defaultColumns = 80

// Run starts a cluster and returns when all of it has ended: nil if it was stopped and no member
// failed.
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

	c := &cluster{opts: opts, members: members, ended: make(chan *process), healthy: make(chan *process), commands: make(chan string),
		requests: make(chan *request), over: make(chan *breakage), ids: map[string]string{}}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c.ctx = ctx
	door, err := listenForRequests(opts.DataDir)
	if err != nil {
		return err
	}
	defer door.Close()
	go c.answer(door)
	for i := range members {
		if err := c.start(i); err != nil {
			c.stop()
			return err
		}
	}
	if opts.Input != nil {
		go c.read(opts.Input)
	}
	return c.supervise()
}

type cluster struct {
	opts      Options
	ctx       context.Context // ends with the cluster
	members   []member
	mu        sync.Mutex // serialises output
	processes []*process // of each member the last
	commands  chan string
	requests  chan *request     // commands from other terminals
	breakages breakages         // what is broken
	over      chan *breakage    // its time is over
	ids       map[string]string // names of members by their ids, as far as known
	reply     *strings.Builder  // gets what is said, too, while a request is dealt with; else nil
	// replyColumns is the width of the terminal that shows it; 0: unknown.
	replyColumns int
	ended        chan *process // a process ended
	healthy      chan *process // a process answered its first health check
	stopping     bool
	failures     int // processes that ended by themselves, or had to be killed
}

// say prints a line of our own.
func (c *cluster) say(format string, args ...any) {
	if c.reply != nil {
		fmt.Fprintf(c.reply, format+"\n", args...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintf(c.opts.Stdout, format+"\n", args...)
}

// start starts member i, for the first time or again.
func (c *cluster) start(i int) error {
	p := &process{member: c.members[i], args: c.opts.args(c.members, i), again: i < len(c.processes)}
	width := len(c.members[len(c.members)-1].name)
	if c.opts.Compact {
		how := os.O_TRUNC
		if p.again {
			how = os.O_APPEND
		}
		file, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_WRONLY|how, 0o600)
		if err != nil {
			return err
		}
		p.file = file
		p.view = &view{colour: c.opts.Colour, width: func() int { return columns(c.opts.Stderr) }, now: time.Now}
	}
	stream := func() *prefixer {
		log := &prefixer{mu: &c.mu, w: c.opts.Stderr, prefix: memberPrefix(i, p.name, width, c.opts.Colour), view: p.view, columns: width + 3}
		if p.file != nil {
			log.full = p.file
		}
		p.logs = append(p.logs, log)
		return log
	}
	// What a person would start by hand is `belay server`; ours can be broken.
	p.cmd = exec.Command(c.opts.Program, append([]string{"dev", MemberCommand}, p.args[1:]...)...)
	p.cmd.Env = environ(p.args)
	pipe, err := p.cmd.StdinPipe()
	if err != nil {
		return err
	}
	p.tell = make(chan fault.State, 1)
	p.tell <- c.breakages.around(c.members, p.name)
	p.cmd.Stdout, p.cmd.Stderr = stream(), stream()
	p.cmd.SysProcAttr = detached()
	p.cmd.WaitDelay = time.Second // should a grandchild hold the log open
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("cannot start %s: %w", p.name, err)
	}
	go telling(pipe, p.tell)
	ctx, stopped := context.WithCancel(c.ctx)
	p.stopped = stopped
	if p.again {
		c.processes[i] = p
	} else {
		c.processes = append(c.processes, p)
	}
	go func() {
		// How it ended is in ProcessState, which the loop reads after this.
		_ = p.cmd.Wait()
		for _, log := range p.logs {
			log.flush()
		}
		if p.file != nil {
			_ = p.file.Close()
		}
		c.ended <- p
	}()
	go func() {
		// A member logs each /health request that finds it without a leader, and a new one has
		// none. So ask first for the cluster's version, which is agreed on with the first leader.
		client := c.opts.healthClient()
		if await(ctx, client, p.clientURL()+"/version", func(body []byte) bool { return !bytes.Contains(body, []byte("not_decided")) }) &&
			await(ctx, client, p.clientURL()+"/health", func(body []byte) bool { return bytes.Contains(body, []byte(`"true"`)) }) {
			select {
			case c.healthy <- p:
			case <-ctx.Done():
			}
		}
	}()
	return nil
}

// await asks until the answer is good, or ctx ends.
func await(ctx context.Context, client *http.Client, url string, good func(body []byte) bool) bool {
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
			if p.again {
				c.event()
				c.say("%s serves again: %s", p.name, c.state())
			}
		case p := <-c.ended:
			c.note(p)
			if c.running() == 0 && !p.asked {
				return c.verdict()
			}
		case line := <-c.commands:
			quit, err := c.command(strings.Fields(line))
			if err != nil {
				c.say("%v", err)
			}
			if quit {
				c.say("stopping %d members (Ctrl-C kills them)", c.running())
				c.stop()
				return c.verdict()
			}
		case r := <-c.requests:
			c.request(r)
		case b := <-c.over:
			c.expire(b)
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

// allHealthy reports whether all running members are healthy.
func (c *cluster) allHealthy() bool {
	for _, p := range c.processes {
		if !p.ended && !p.healthy {
			return false
		}
	}
	return true
}

// greet prints how to use the cluster.
func (c *cluster) greet() { c.say("%s", "\nThe cluster is ready:\n"+c.overview()) }

// overview lists the members, commands to try, and what may be typed.
func (c *cluster) overview() string {
	var text strings.Builder
	var endpoints []string
	for _, p := range c.processes {
		if p.ended {
			fmt.Fprintf(&text, "  %s  does not run\n", p.name)
			continue
		}
		endpoints = append(endpoints, p.client())
		fmt.Fprintf(&text, "  %s  clients %s  peers %s  pid %d\n", p.name, p.clientURL(), p.peerURL(), p.cmd.Process.Pid)
	}
	fmt.Fprintf(&text, "\nIn another terminal:\n")
	fmt.Fprintf(&text, "  export ETCDCTL_ENDPOINTS=%s\n", strings.Join(endpoints, ","))
	vars, err := c.opts.clientVariables(c.members)
	if err != nil {
		fmt.Fprintf(&text, "  (no certificates: %v)\n", err)
	}
	for _, v := range vars {
		name, value, _ := strings.Cut(v, "=")
		fmt.Fprintf(&text, "  export %s=%s\n", name, Quoted(value))
	}
	belay := Quoted(CommandName(c.opts.Program))
	fmt.Fprintf(&text, "  %s ctl put hello world\n", belay)
	fmt.Fprintf(&text, "  %s ctl endpoint status -w table\n\n", belay)
	if c.opts.Input != nil {
		fmt.Fprintf(&text, "Here, each with Enter: kill m1, start m1, partition leader for 10s, pause m2,\ndisk m3 stall for 10s, heal, status, help. Each says what to watch for.\n")
	}
	if c.opts.Compact {
		fmt.Fprintf(&text, "Of the logs you see warnings and errors; all is in %s, ...\n", short(c.processes[0].logFile()))
	}
	fmt.Fprintf(&text, "Ctrl-C stops all members. Their data stays in %s;\n--clean starts afresh.\n", short(c.opts.DataDir))
	return text.String()
}

// CommandName is how a shell would call the belay at a path: by its name, if the shell would find
// it so.
func CommandName(program string) string {
	const name = "belay"
	if found, err := exec.LookPath(name); err == nil {
		a, errA := os.Stat(found)
		b, errB := os.Stat(program)
		if errA == nil && errB == nil && os.SameFile(a, b) {
			return name
		}
	}
	return program
}

// state says in a few words which members run.
func (c *cluster) state() string {
	var words []string
	for _, p := range c.processes {
		how := "up"
		switch {
		case p.ended:
			how = "down"
		case p.paused:
			how = "paused"
		case !p.healthy:
			how = "starting"
		}
		words = append(words, p.name+" "+how)
	}
	return strings.Join(words, ", ")
}

// event marks a point after which lines that were shown before are shown again.
func (c *cluster) event() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.processes {
		if p.view != nil {
			p.view.told = nil
		}
	}
}

// read passes lines on as commands until there are no more.
func (c *cluster) read(from io.Reader) {
	lines := bufio.NewScanner(from)
	for lines.Scan() {
		select {
		case c.commands <- lines.Text():
		case <-c.ctx.Done():
			return
		}
	}
}

const help = `  kill m2       end m2 at once, as a crash would (SIGKILL)
  stop m2       stop m2 in order (SIGTERM)
  start m2      start it again
  restart m2    stop and start it
  partition m2  cut m2 off from the others; "partition m1 m2": these two alone
  delay m2 200ms, loss m2 10%      of all that goes to m2 and comes from it
  disk m2 slow 300ms, disk m2 stall, disk m2 full    "log" or "store" behind it: that alone
  pause m2      stop m2 as it is (SIGSTOP)
  heal m2       undo what is broken; "heal": all of it
  faults        what is broken
  status        which members run, and how to reach them
  quit          stop all, as Ctrl-C does
"leader" and "follower" are names, too; "for 5s" behind a fault undoes it then; "one-way"
behind partition, delay and loss: only what the first says to the others.`

// command does what was typed, and reports whether that was quit; the error is one in what was
// typed, or what kept it from being done.
func (c *cluster) command(words []string) (quit bool, err error) {
	if len(words) == 0 {
		return false, nil
	}
	switch words[0] {
	case "quit", "exit", "q":
		return true, nil
	case "status", "s":
		c.say("%s: %s\nbroken: %s\n%s", "members", c.state(), c.breakages, c.overview())
	case "faults":
		c.say("%s: %s\nbroken: %s", "members", c.state(), c.breakages)
	case "heal", "resume":
		return false, c.heal(words[1:])
	case "stop", "start", "restart":
		return false, c.control(words)
	case "help", "h", "?":
		c.say("%s", help)
	default:
		if !slices.Contains(kinds[:], words[0]) {
			return false, fmt.Errorf("%q is no command:\n%s", strings.Join(words, " "), help)
		}
		b, err := c.parse(words)
		if err != nil {
			return false, err
		}
		return false, c.breakIt(b)
	}
	return false, nil
}

// control starts or stops a member.
func (c *cluster) control(words []string) error {
	if len(words) != 2 {
		return fmt.Errorf("%s which member? There are %s", words[0], c.state())
	}
	name, err := c.named(words[1])
	if err != nil {
		return fmt.Errorf("%s which member? %w", words[0], err)
	}
	i := slices.IndexFunc(c.processes, func(p *process) bool { return p.name == name })
	p := c.processes[i]
	switch {
	case p.ended && words[0] == "stop":
		return fmt.Errorf("%s does not run: start %s starts it", p.name, p.name)
	case p.ended:
		c.startAgain(i)
	case words[0] == "start":
		return fmt.Errorf("%s runs already, with pid %d", p.name, p.cmd.Process.Pid)
	default:
		p.asked, p.restart = true, words[0] == "restart"
		for _, log := range p.logs {
			log.hush()
		}
		if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			c.kill(p) // there is no SIGTERM on this system
		}
		if p.paused {
			c.say("%s is paused: it goes on, to stop", p.name)
			c.resume(p)
		}
	}
	return nil
}

func (c *cluster) startAgain(i int) {
	if err := c.start(i); err != nil {
		c.say("%v", err)
		return
	}
	c.breakages.drop(of(c.processes[i].name, kill))
	c.say("%s starts, with pid %d", c.processes[i].name, c.processes[i].cmd.Process.Pid)
}

// note records that a process ended, reports it unless the cluster is being stopped, and starts it
// again if a restart was requested.
func (c *cluster) note(p *process) {
	p.ended, p.paused = true, false
	close(p.tell)
	c.breakages.drop(of(p.name, pause))
	p.stopped()
	if c.stopping && p.asked {
		return
	}
	c.event()
	state := p.cmd.ProcessState
	if p.restart && !c.stopping {
		c.startAgain(slices.Index(c.processes, p))
		return
	}
	if !p.asked {
		c.failures++
	}
	how := fmt.Sprintf("ended with exit code %d", state.ExitCode())
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		how = fmt.Sprintf("ended by signal %d (%s)", status.Signal(), status.Signal())
		if p.asked && status.Signal() == syscall.SIGTERM { // servers end by the signal that ended them
			how = "has stopped"
		}
	}
	rest := fmt.Sprintf("%d of %d members still run", c.running(), len(c.processes))
	if n := c.running(); n > 0 && n <= len(c.processes)/2 {
		rest += ", too few for a quorum: reads and writes wait until another is back"
	}
	log := "above"
	if c.opts.Compact {
		log = "in " + short(p.logFile())
	}
	if slices.ContainsFunc(c.breakages, func(b *breakage) bool { return b.kind == kill && b.member == p.name && b.lasts > 0 }) {
		c.say("%s %s; its log is %s. %s (%s).", p.name, how, log, rest, c.state())
		return
	}
	if c.opts.Input != nil {
		c.say("%s %s; its log is %s. %s (%s).\nTo start it again, type: start %s", p.name, how, log, rest, c.state(), p.name)
		return
	}
	c.say("\n%s %s; its log is %s. %s.\nTo start it again, in another terminal:\n  %s\n", p.name, how, log, rest, commandLine(c.opts.Program, p.args))
}

// short is a path as one would type it in the present directory.
func short(path string) string {
	if dir, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(dir, path); err == nil && len(rel) < len(path) {
			return rel
		}
	}
	return path
}

// logFile is the file with the member's whole log, where only part of it is shown.
func (p *process) logFile() string { return p.dataDir + ".log" }

// stop ends all members, the last started first, each before the next: the others see it leave in
// order.
func (c *cluster) stop() {
	c.stopping = true
	c.undo(func(*breakage) bool { return true }) // a stop in order needs disks and links
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
			case <-c.commands:
			case r := <-c.requests:
				r.answer <- reply{Text: "belay dev is stopping"}
			case <-c.over:
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
		words = append(words, Quoted(word))
	}
	return strings.Join(words, " ")
}

// Quoted is a word quoted for a shell, if necessary.
func Quoted(word string) string {
	if word != "" && !strings.ContainsAny(word, " \t\n\"'\\$`&|;<>()*?[]#~!{}") {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
