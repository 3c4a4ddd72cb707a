package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/timemap"
)

// maxMoments bounds the answer of one member.
const maxMoments = 4 << 20

// coarse is from which distance between two sightings on an answer is said to be coarse. Members
// look once a second.
const coarse = 2500 * time.Millisecond

// past is what is asked of a cluster about its earlier revisions.
type past struct {
	c   *ctl
	cli *clientv3.Client
}

// errNoTimes is what servers say that are not Belay, or are not reached by HTTP.
var errNoTimes = errors.New("no endpoint knows when which revision was written: members of Belay do, and tell it on the port that answers /metrics; " +
	"etcd does not, so name a revision")

// patience is how long one endpoint is waited for where all are asked. A process that is stopped takes
// a connection and says nothing; that must not cost the answers of the others.
const patience = 2 * time.Second

// everyEndpoint asks all at the same time, none for longer than patience, or half of the time that
// the command has. It returns the answers, those that failed with their errors, in order.
func everyEndpoint[A any](ctx context.Context, c *ctl, endpoints []string, ask func(ctx context.Context, base string) (A, error)) (answers []A, errs []error) {
	answers, errs = make([]A, len(endpoints)), make([]error, len(endpoints))
	within := patience
	if half := c.global.CommandTimeout / 2; half > 0 {
		within = min(within, half)
	}
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var asking sync.WaitGroup
	for i, endpoint := range endpoints {
		asking.Go(func() {
			if answers[i], errs[i] = ask(ctx, connect.HTTPBase(endpoint, c.tls != nil)); errs[i] != nil {
				errs[i] = fmt.Errorf("%s: %w", endpoint, errs[i])
			}
		})
	}
	asking.Wait()
	return answers, errs
}

// sightings asks all endpoints what they know. The error is errNoTimes, with why, if none knows
// anything.
func (p past) sightings(ctx context.Context, query url.Values) (known []timemap.Answer, err error) {
	transport := &http.Transport{TLSClientConfig: p.c.tls}
	defer transport.CloseIdleConnections()
	answers, errs := everyEndpoint(ctx, p.c, p.cli.Endpoints(), func(ctx context.Context, base string) (timemap.Answer, error) {
		return askSightings(ctx, &http.Client{Transport: transport}, base, query)
	})
	var why error
	for i, a := range answers {
		if errs[i] != nil {
			why = errs[i]
			continue
		}
		known = append(known, a)
	}
	if len(known) == 0 {
		return nil, fmt.Errorf("%w (%w)", errNoTimes, why)
	}
	return known, nil
}

func askSightings(ctx context.Context, client *http.Client, base string, query url.Values) (a timemap.Answer, err error) {
	if base == "" {
		return a, errors.New("it is not reached by HTTP")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+timemap.Path+"?"+query.Encode(), nil)
	if err != nil {
		return a, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return a, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxMoments))
	switch {
	case err != nil:
		return a, err
	case resp.StatusCode == http.StatusNotFound:
		return a, errors.New("it has no " + timemap.Path)
	case resp.StatusCode != http.StatusOK:
		return a, fmt.Errorf("%s: %s", resp.Status, strings.TrimSpace(string(body)))
	}
	if err := json.Unmarshal(body, &a); err != nil {
		return a, fmt.Errorf("%s: %w", timemap.Path, err)
	}
	return a, nil
}

// revisionAt is the newest revision at t as far as a member had seen it, and tells the user on
// standard error which one it took.
func (p past) revisionAt(ctx context.Context, t time.Time) (int64, error) {
	if now := time.Now(); t.After(now.Add(time.Second)) {
		return 0, failf(codeBadArgs, "%s is in the future", stamp(t))
	}
	known, err := p.sightings(ctx, url.Values{"at": {t.UTC().Format(time.RFC3339Nano)}})
	if err != nil {
		return 0, fail(codeError, err)
	}
	var best *timemap.AnswerAt
	var oldest *timemap.Point
	from := ""
	for i := range known {
		if first := known[i].Span.From; first != nil && (oldest == nil || first.Time.Before(oldest.Time)) {
			oldest = first
		}
		if len(known[i].At) != 1 || known[i].At[0].From == nil {
			continue
		}
		if at := &known[i].At[0]; best == nil || at.From.Revision > best.From.Revision {
			best, from = at, known[i].Name
		}
	}
	switch {
	case best == nil && oldest == nil:
		return 0, failf(codeError, "no member has seen a revision yet")
	case best == nil:
		return 0, failf(codeError, "%s is before what the members remember: from %s on (revision %d)", stamp(t), stamp(oldest.Time), oldest.Revision)
	}
	text := fmt.Sprintf("%s: revision %d, which %s had at %s", stamp(t), best.From.Revision, from, stamp(best.From.Time))
	switch {
	case best.To == nil:
		text += ", and it has written nothing since"
	case best.To.Revision == best.From.Revision:
		text += ", and still at " + stamp(best.To.Time)
	default:
		text += fmt.Sprintf("; at %s it had %d", stamp(best.To.Time), best.To.Revision)
		if best.To.Time.Sub(best.From.Time) > coarse {
			text += ", and when what is between was written is not known"
		}
	}
	fmt.Fprintln(p.c.err, text)
	return best.From.Revision, nil
}

// stamp is a time to the second, in local time.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// writtenAt says when revisions were written, by the member that saw each first. Those that nobody
// knows are missing; one that no member has compared its clock with yet, which they do once a second,
// has no To.
func (p past) writtenAt(ctx context.Context, revisions []int64) (map[int64]timemap.Interval, error) {
	when := make(map[int64]timemap.Interval, len(revisions))
	for len(revisions) > 0 {
		n := min(len(revisions), timemap.MaxQuestions)
		query := url.Values{}
		for _, rev := range revisions[:n] {
			query.Add("of", strconv.FormatInt(rev, 10))
		}
		revisions = revisions[n:]
		known, err := p.sightings(ctx, query)
		if err != nil {
			return nil, err
		}
		for _, a := range known {
			for _, of := range a.Of {
				if of.From == nil {
					continue // older than its map
				}
				if seen, ok := when[of.Revision]; !ok || earlier(of.Interval, seen) {
					when[of.Revision] = of.Interval
				}
			}
		}
	}
	return when, nil
}

// earlier reports whether a is of the member that saw a revision first. Where neither has noted it,
// the earlier bound is the true one: a member that is behind lacks what was written before.
func earlier(a, b timemap.Interval) bool {
	switch {
	case a.To != nil && b.To != nil:
		return a.To.Time.Before(b.To.Time)
	case a.To != nil || b.To != nil:
		return a.To != nil
	}
	return a.From.Time.Before(b.From.Time)
}

// atFlag adds --at to a command that has --rev, and returns how to read it: 0 if it is not given.
func (c *ctl) atFlag(cmd *cobra.Command, usage string) func(ctx context.Context, cli *clientv3.Client) (int64, error) {
	text := cmd.Flags().String("at", "", usage)
	return func(ctx context.Context, cli *clientv3.Client) (int64, error) {
		if *text == "" {
			return 0, nil
		}
		if cmd.Flags().Changed("rev") {
			return 0, failf(codeBadArgs, "--at and --rev both say which revision: give one")
		}
		t, err := timemap.Parse(*text, time.Now())
		if err != nil {
			return 0, fail(codeBadArgs, fmt.Errorf("--at: %w", err))
		}
		return past{c, cli}.revisionAt(ctx, t)
	}
}

// oldestRevision is the oldest revision that can be read, 1 if nothing was compacted.
func oldestRevision(ctx context.Context, cli *clientv3.Client) (int64, error) {
	_, err := cli.Get(ctx, "\x00", clientv3.WithRev(1), clientv3.WithCountOnly())
	if !errors.Is(err, rpctypes.ErrCompacted) {
		return 1, err
	}
	// A watch from the beginning is refused with it.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for resp := range cli.Watch(ctx, "\x00", clientv3.WithRev(1)) {
		if resp.CompactRevision > 0 {
			return resp.CompactRevision, nil
		}
		if err := resp.Err(); err != nil {
			return 0, err
		}
	}
	return 0, ctx.Err()
}

// explain adds to err what can be read, if err is that a revision was compacted or is yet to come.
func (p past) explain(ctx context.Context, rev int64, err error) error {
	if hint := p.hint(ctx, rev, err); hint != "" {
		return &exitError{code: codeError, err: err, hint: hint}
	}
	return err
}

// hint is what explain adds. It is empty for any other error, and where it cannot be found out: the
// user may not read, or nobody answers any more.
func (p past) hint(ctx context.Context, rev int64, err error) string {
	switch {
	case errors.Is(err, rpctypes.ErrCompacted):
		oldest, oerr := oldestRevision(ctx, p.cli)
		if oerr != nil {
			return ""
		}
		when := func(rev int64) string {
			known, err := p.writtenAt(ctx, []int64{rev})
			if at, ok := known[rev]; err == nil && ok {
				return " (written " + intervalOf(at).text() + ")"
			}
			return ""
		}
		return fmt.Sprintf("Hint: revision %d%s was compacted; the oldest that can be read is %d%s", rev, when(rev), oldest, when(oldest))
	case errors.Is(err, rpctypes.ErrFutureRev):
		if resp, gerr := p.cli.Get(ctx, "\x00", clientv3.WithCountOnly()); gerr == nil {
			return fmt.Sprintf("Hint: the newest revision is %d", resp.Header.GetRevision())
		}
	}
	return ""
}
