package rolling

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Move makes the members of a running etcd Belay's one by one, with their data, or back.
//
// For each member: leadership handed over if it leads, stopped, its data migrated, started, checked.
// Processes and files are the operator's: it is done by commands of theirs, or they are asked to.
// Nothing is remembered: the next run finds members of the new kind done, and one that does not
// answer is where the last run ended, whose data may have been migrated or not. So that it is not
// where another run is at work, one has its turn at a time.
type Move struct {
	Client      *clientv3.Config
	To          Kind
	Version     string // of etcd, for To Etcd: "3.6"; "": the cluster's
	Commands    Commands
	Timeout     time.Duration // of one request
	StepTimeout time.Duration // of one command, and of a member to come back
	Out         io.Writer     // what is done, for people
	In          io.Reader     // where who is asked answers; nil: nobody can be asked

	look  *looker
	lines chan string // of In
}

// open begins to look.
func (m *Move) open(ctx context.Context) (err error) {
	if err := m.Commands.Check(); err != nil {
		return err
	}
	if m.look, err = newLooker(ctx, m.Client, min(m.Timeout, lookTimeout)); err != nil {
		err = m.look.about(err)
		m.look.close()
	}
	return err
}

// Plan is the steps for the cluster as it is, as text.
func (m *Move) Plan(ctx context.Context) (string, error) {
	if err := m.open(ctx); err != nil {
		return "", err
	}
	defer m.look.close()
	c, err := m.look.look(ctx)
	if err != nil {
		return "", m.look.about(err)
	}
	if err := m.look.mayCompare(ctx, c); err != nil {
		return "", err
	}
	p, err := newPlan(c, m.To, m.Version, m.Commands)
	if err != nil {
		return "", err
	}
	p.secured = m.Client.TLS != nil || m.Client.Username != "" || m.Client.Token != ""
	return p.text()
}

// Run takes the steps, and stops at the first that fails.
func (m *Move) Run(ctx context.Context) error {
	if err := m.open(ctx); err != nil {
		return err
	}
	defer m.look.close()
	if m.In == nil && (m.Commands.Stop == "" || m.Commands.Migrate == "" || m.Commands.Start == "") {
		return refuse("Hint: --stop-command, --migrate-command and --start-command; see --help", "nobody can be asked here to stop, migrate and start members")
	}
	m.listen()
	if _, err := m.planned(ctx, m.Version); err != nil {
		return err // before anything is asked for: it says best why nothing goes
	}
	cfg := m.look.cfg
	cfg.Context = context.WithoutCancel(ctx) // the turn is given back after a Ctrl-C, too
	client, err := clientv3.New(cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	t := &turn{client: client, timeout: m.look.timeout, say: m.say}
	return t.alone(ctx, m.all)
}

// all moves all members.
func (m *Move) all(ctx context.Context) error {
	first, err := m.planned(ctx, m.Version)
	if err != nil {
		return err
	}
	if first.downgrade {
		if err := m.lower(ctx, first.version); err != nil {
			return fmt.Errorf("lower the cluster's version to %s: %w", first.version, err)
		}
	}
	moved := 0
	for {
		p, err := m.planned(ctx, first.version) // the leader may be another one by now
		if err != nil {
			return err
		}
		if c := p.cluster; len(p.order) == 0 {
			rev, err := m.look.same(ctx, c.Members, rest)
			if err != nil {
				return err
			}
			m.say("All %d members are %s; %d moved by this run; hashes equal at revision %d; the cluster's version is %s.", len(c.Members), m.To, moved, rev, c.Members[0].Version)
			return nil
		}
		if err := m.one(ctx, p, p.order[0]); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", p.order[0].Name, err)
		}
		moved++
	}
}

func (m *Move) say(format string, args ...any) { fmt.Fprintf(m.Out, format+"\n", args...) }

// one moves one member.
func (m *Move) one(ctx context.Context, p *plan, it *Member) error {
	at, err := p.place(it)
	if err != nil {
		return err
	}
	doings, err := p.doings(at)
	if err != nil {
		return err
	}
	m.say("%s (%x) becomes %s", it.Name, it.ID, p.to)
	var rest []*Member
	for _, o := range p.cluster.Members {
		if o.Status != nil {
			rest = append(rest, o)
		}
	}
	if it.Status == nil {
		m.say("  it does not answer: going on where an earlier run ended")
	} else if err := m.step(ctx, "check", "", "nothing was changed; see both members' logs", func(ctx context.Context) error { return m.whole(ctx, rest) }); err != nil {
		return err
	}
	if it.ID == p.cluster.Leader {
		if err := m.step(ctx, "hand over", "", "nothing was changed", func(ctx context.Context) error { return m.yield(ctx, p, it) }); err != nil {
			return err
		}
	}
	if err := m.step(ctx, "stop", doings[0].command, "nothing was changed but that it may be stopped: start it as "+string(at.From)+", or run this again", func(ctx context.Context) error {
		if err := m.do(ctx, at, doings[0]); err != nil {
			return err
		}
		return m.until(ctx, m.StepTimeout, func() error { return m.gone(ctx, it) })
	}); err != nil {
		return err
	}
	if err := m.step(ctx, "check", "", "start "+it.Name+" again as "+string(at.From)+" first: the others are not well without it", func(ctx context.Context) error {
		return m.until(ctx, checkTimeout, func() error { return m.others(ctx, it.ID) })
	}); err != nil {
		return err
	}
	if err := m.step(ctx, "migrate", doings[1].command, "it is stopped, and its data is as it was unless the command says otherwise: start it as "+string(at.From)+", or mend what it says (\"When it says no\" in docs/migration.md) and run this again", func(ctx context.Context) error {
		return m.do(ctx, at, doings[1])
	}); err != nil {
		return err
	}
	back := strings.TrimSuffix(at.Migrate, " --to-etcd="+p.version)
	if at.From == Etcd {
		back += " --to-etcd=" + p.version
	}
	help := fmt.Sprintf("its log says why. Mend it and run this again; or take this member back: stop it, `%s`, and start it as %s", back, at.From)
	if err := m.step(ctx, "start", doings[2].command, help, func(ctx context.Context) error {
		if err := m.do(ctx, at, doings[2]); err != nil {
			return err
		}
		var goal uint64
		return m.until(ctx, m.StepTimeout, func() error { return m.back(ctx, p, it, &goal) })
	}); err != nil {
		return err
	}
	return m.step(ctx, "check", "", "go no further: this mix may stay as it is. `belay ctl endpoint hashkv --cluster` and the members' logs say who differs", func(ctx context.Context) error {
		c, err := m.look.look(ctx)
		if err != nil {
			return err
		}
		return m.whole(ctx, c.Members)
	})
}

// step does one thing, says it, and says what to do if it fails.
func (m *Move) step(ctx context.Context, what, command, help string, fn func(ctx context.Context) error) error {
	line := fmt.Sprintf("  %-9s", what)
	if command != "" {
		line += " " + command
	}
	m.say("%s", line)
	began := time.Now()
	err := fn(ctx)
	if err == nil {
		m.say("  %-9s ok, %.1f s", "", time.Since(began).Seconds())
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return refusal{fmt.Errorf("%s: %w", what, err), "What to do: " + help}
}

const (
	// checkTimeout is how long members may take to be at one again: an election, new connections.
	checkTimeout = time.Minute
	// sayEvery is how often it is said what is waited for.
	sayEvery = 10 * time.Second
)

// until tries again and again, and says from time to time why.
func (m *Move) until(ctx context.Context, timeout time.Duration, fn func() error) error {
	began := time.Now()
	said := began
	for {
		err := fn()
		switch now := time.Now(); {
		case err == nil:
			return nil
		case now.Sub(began) > timeout:
			return fmt.Errorf("not within %v: %w", timeout, err)
		case now.Sub(said) > sayEvery:
			said = now
			m.say("  %-9s waiting: %v", "", err)
		}
		if err := rest(ctx); err != nil {
			return err
		}
	}
}

// planned looks until there is a leader, and plans.
func (m *Move) planned(ctx context.Context, version string) (p *plan, err error) {
	if err := m.until(ctx, checkTimeout, func() error {
		c, err := m.look.look(ctx)
		if err == nil && c.Leader == 0 {
			err = errors.New("no member knows a leader")
		}
		if err == nil {
			err = m.look.mayCompare(ctx, c)
		}
		if err == nil {
			p, err = newPlan(c, m.To, version, m.Commands)
		}
		err = m.look.about(err)
		if _, refused := errors.AsType[refusal](err); refused {
			p = &plan{refused: err}
			return nil
		}
		return err
	}); err != nil {
		return nil, err
	}
	return p, p.refused
}

// whole wants a cluster without fault, and equal hashes. Members of it may be on their way for a
// while: leadership moves, connections are made.
func (m *Move) whole(ctx context.Context, members []*Member) error {
	if err := m.until(ctx, checkTimeout, func() error {
		if err := m.others(ctx, 0); err != nil {
			return err
		}
		return m.reads(ctx, members)
	}); err != nil {
		return err
	}
	rev, err := m.look.same(ctx, members, rest)
	if err == nil {
		m.say("  %-9s hashes equal at revision %d", "", rev)
	}
	return err
}

// others wants all members but one to answer, to agree on a leader, and no alarm.
func (m *Move) others(ctx context.Context, but uint64) error {
	c, err := m.look.look(ctx)
	if err != nil {
		return err
	}
	if len(c.Alarms) > 0 {
		return fmt.Errorf("there are alarms: %v", c.Alarms)
	}
	for _, o := range c.Members {
		switch {
		case o.ID == but:
		case o.Status == nil:
			return fmt.Errorf("%s does not answer: %w", o.Name, o.Err)
		case o.Status.Leader == 0 || o.Status.Leader != c.Leader:
			return fmt.Errorf("the members do not agree on a leader: %s has %x", o.Name, o.Status.Leader)
		case len(o.Status.Errors) > 0:
			return fmt.Errorf("%s says: %s", o.Name, strings.Join(o.Status.Errors, ", "))
		}
	}
	return nil
}

// reads makes a linearizable read at each voter, which takes a quorum and the leader.
func (m *Move) reads(ctx context.Context, members []*Member) error {
	for _, o := range members {
		if o.IsLearner {
			continue
		}
		cli, err := m.look.at(o.Endpoint)
		if err != nil {
			return err
		}
		if err := m.look.bounded(ctx, func(ctx context.Context) error {
			_, err := cli.Get(ctx, "health", clientv3.WithCountOnly())
			if errors.Is(err, rpctypes.ErrPermissionDenied) {
				return nil // it was asked and judged
			}
			return err
		}); err != nil {
			return fmt.Errorf("a read at %s: %w", o.Name, err)
		}
	}
	return nil
}

// yield has another member lead.
func (m *Move) yield(ctx context.Context, p *plan, it *Member) error {
	return m.until(ctx, checkTimeout, func() error {
		c, err := m.look.look(ctx)
		if err != nil {
			return err
		}
		if c.Leader != it.ID && c.Leader != 0 {
			m.say("  %-9s %s leads", "", c.Member(c.Leader).Called())
			return nil
		}
		to := p.heir(c, it.ID)
		if to == nil {
			return errors.New("there is nobody else to lead")
		}
		if err := m.look.handOver(ctx, c, to); err != nil {
			return err
		}
		return fmt.Errorf("%s still leads", it.Name)
	})
}

// gone wants a member not to answer.
func (m *Move) gone(ctx context.Context, it *Member) error {
	if it.Endpoint == "" {
		return nil
	}
	if _, err := m.look.status(ctx, it.Endpoint); !silent(err) {
		return fmt.Errorf("%s still answers at %s", it.Name, it.Endpoint) // a refusal is an answer, too
	}
	return ctx.Err()
}

// back wants a member to answer as what it is to be, and to have what the leader had when it first
// answered.
func (m *Move) back(ctx context.Context, p *plan, it *Member, goal *uint64) error {
	c, err := m.look.look(ctx)
	if err != nil {
		return err
	}
	now := c.Member(it.ID)
	switch {
	case now == nil:
		return fmt.Errorf("it is no member any more")
	case now.Status == nil:
		if why := m.look.health(ctx, now.Endpoint); why != "" {
			return fmt.Errorf("it runs and says %s: if this stays, see its log and those of the others (\"rejected connection on peer endpoint\" names a certificate that does not fit)", why)
		}
		return fmt.Errorf("it does not answer: %w", now.Err)
	case now.Kind != p.to:
		return fmt.Errorf("what answers at %s is %s, not %s", now.Endpoint, now.Kind, p.to)
	case now.IsLearner != it.IsLearner:
		return fmt.Errorf("learner is %v, was %v", now.IsLearner, it.IsLearner)
	case p.to == Etcd && !strings.HasPrefix(now.Status.Version, p.version+"."):
		return fmt.Errorf("it is an etcd %s, not %s", now.Status.Version, p.version)
	}
	if *goal == 0 {
		*goal = c.furthestIndex()
	}
	if now.Status.RaftAppliedIndex < *goal {
		return fmt.Errorf("it has applied %d of %d entries", now.Status.RaftAppliedIndex, *goal)
	}
	return nil
}

// lower enables a downgrade, and waits until the cluster has the version.
func (m *Move) lower(ctx context.Context, version string) error {
	m.say("The cluster's version becomes %s", version)
	if err := m.look.bounded(ctx, func(ctx context.Context) error {
		_, err := m.look.all.Downgrade(ctx, clientv3.DowngradeEnable, version)
		if errors.Is(err, rpctypes.ErrDowngradeInProcess) {
			return nil
		}
		return err
	}); err != nil {
		return err
	}
	return m.until(ctx, checkTimeout, func() error {
		c, err := m.look.look(ctx)
		if err != nil {
			return err
		}
		for _, o := range c.Members {
			if o.Status != nil && !strings.HasPrefix(o.Version, version+".") {
				return fmt.Errorf("%s has the cluster at version %s", o.Name, o.Version)
			}
		}
		return nil
	})
}

// migratedBefore is what `util migrate` says of data that an earlier run has made what it is to be.
var migratedBefore = regexp.MustCompile(`(is data of (belay|etcd)|is (belay|etcd)'s) already`)

// do runs an operator's command, or asks for what it would do.
func (m *Move) do(ctx context.Context, at place, d doing) error {
	if d.command == "" {
		return m.ask(ctx, fmt.Sprintf("  On %s (%s), %s: %s\n  Enter when it is done, Ctrl-C to end here: ", at.Name, at.Host, d.what, d.how))
	}
	said, err := shell(ctx, d.command, m.StepTimeout)
	for line := range strings.Lines(said) {
		m.say("            %s", strings.TrimRight(line, "\r\n"))
	}
	if err != nil && d.what == "migrate" && migratedBefore.MatchString(said) {
		return nil // by an earlier run
	}
	return err
}

// maxSaid is how much of what a command says is shown, bytes: its end.
const maxSaid = 4 << 10

// shell runs a command. What it prints goes to a file, not a pipe: a process that it leaves running
// would keep a pipe open.
func shell(ctx context.Context, command string, timeout time.Duration) (said string, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := os.CreateTemp("", "belay-move-*.out")
	if err != nil {
		return "", err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, "sh", "-c", command)
	cmd.Stdout, cmd.Stderr = out, out
	err = cmd.Run()
	if st, serr := out.Stat(); serr == nil {
		text := make([]byte, min(st.Size(), maxSaid))
		n, _ := out.ReadAt(text, st.Size()-int64(len(text))) // what there is
		said = string(text[:n])
	}
	if ctx.Err() != nil {
		return said, fmt.Errorf("the command did not end within %v", timeout)
	}
	return said, err
}

// listen reads the lines of In, for ask, which shall end with its context.
func (m *Move) listen() {
	m.lines = make(chan string)
	if m.In == nil {
		return
	}
	go func() {
		defer close(m.lines)
		for in := bufio.NewScanner(m.In); in.Scan(); {
			m.lines <- in.Text()
		}
	}()
}

// ask waits until somebody says that something is done.
func (m *Move) ask(ctx context.Context, question string) error {
	fmt.Fprint(m.Out, question)
	select {
	case <-ctx.Done():
		m.say("")
		return ctx.Err()
	case _, ok := <-m.lines:
		if !ok {
			return errors.New("nobody answers: standard input has ended")
		}
		return nil
	}
}
