package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/backup"
	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/internal/show"
)

// maxBackupAnswer bounds the answer of one member.
const maxBackupAnswer = 64 << 20

func backupCommand(c *ctl) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "backup <subcommand>",
		Short: "Backups that the leader makes (belay server --backup-to): how they are, and making one now",
		Long: "Backups that the leader makes where the servers have --backup-to. They are restored with no member\n" +
			"running: belay util backup restore. With users on, only root may ask.",
		GroupID: groupMaintenance,
	}
	var full bool
	now := &cobra.Command{
		Use:   "now",
		Short: "Has the leader make a backup now, or another member for it, and prove it, and waits for it",
		Args:  cobra.NoArgs,
		RunE: backupRun(c, func(ctx context.Context, b *backups) error {
			query := url.Values{}
			if full {
				query.Set("kind", backup.Full)
			}
			return b.order(ctx, query)
		}),
	}
	now.Flags().BoolVar(&full, "full", false, "make a full one, not what was written since the last")
	cmd.AddCommand(now,
		&cobra.Command{
			Use:   "status",
			Short: "Prints what each member says about the backups: how old the last good one is, what is being done, the last error",
			Args:  cobra.NoArgs,
			RunE:  backupRun(c, func(ctx context.Context, b *backups) error { return b.status() }),
		},
		&cobra.Command{
			Use:   "list",
			Short: "Prints the backups that the leader sees, oldest first, and how far each can be relied on",
			Args:  cobra.NoArgs,
			RunE:  backupRun(c, func(ctx context.Context, b *backups) error { return b.list(ctx) }),
		},
	)
	verify := &cobra.Command{
		Use:   "verify <name>",
		Short: "Has the leader restore a backup into a scratch store, or another member for it, and compare it with what was saved",
	}
	verify.RunE = c.run(func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return failf(codeBadArgs, "backup verify needs one argument: the name of a backup, as `backup list` prints it")
		}
		return askBackups(c, cmd, func(ctx context.Context, b *backups) error {
			return b.order(ctx, url.Values{"verify": {args[0]}})
		})
	})
	cmd.AddCommand(verify)
	return cmd
}

// backups asks the members about their backups.
type backups struct {
	c        *ctl
	client   *http.Client
	json     bool
	table    bool     // of list
	token    string   // empty: nobody logs in
	bases    []string // of the endpoints that answered
	statuses []backup.Status
	silent   []error // of the endpoints that did not answer
}

// backupRun is askBackups as a command.
func backupRun(c *ctl, body func(ctx context.Context, b *backups) error) func(*cobra.Command, []string) error {
	return c.run(func(cmd *cobra.Command, _ []string) error { return askBackups(c, cmd, body) })
}

// askBackups asks all endpoints for their status first.
func askBackups(c *ctl, cmd *cobra.Command, body func(ctx context.Context, b *backups) error) error {
	spec, out, err := c.configure(cmd)
	if err != nil {
		return err
	}
	if out.format != "simple" && out.format != "json" && (out.format != "table" || cmd.Name() != "list") {
		return failf(codeBadFeature, "%s not supported as output format", out.format)
	}
	// Making and proving takes as long as it takes: only a timeout given by flag applies.
	ctx := cmd.Context()
	if cmd.Flags().Changed("command-timeout") {
		var cancel context.CancelFunc
		ctx, cancel = c.timeout(cmd)
		defer cancel()
	}
	cli, err := c.dial(ctx, spec)
	if err != nil {
		return err
	}
	b := &backups{c: c, json: out.format == "json", table: out.format == "table"}
	if spec.Auth != nil {
		if b.token = spec.Auth.Token; b.token == "" {
			answer, err := cli.Authenticate(ctx, spec.Auth.Username, spec.Auth.Password)
			if err != nil {
				return fail(codeError, err)
			}
			b.token = answer.Token
		}
	}
	transport := &http.Transport{TLSClientConfig: c.tls}
	defer transport.CloseIdleConnections()
	b.client = &http.Client{Transport: transport}
	if err := b.askAll(ctx, cli); err != nil {
		return err
	}
	return body(ctx, b)
}

// askAll needs one member that makes backups.
func (b *backups) askAll(ctx context.Context, cli *clientv3.Client) error {
	endpoints := cli.Endpoints()
	statuses, errs := everyEndpoint(ctx, b.c, endpoints, func(ctx context.Context, base string) (s backup.Status, err error) {
		err = b.ask(ctx, http.MethodGet, base, nil, &s)
		return s, err
	})
	var why error
	for i, s := range statuses {
		if errs[i] != nil {
			why = errs[i]
			b.silent = append(b.silent, errs[i])
			continue
		}
		b.bases, b.statuses = append(b.bases, connect.HTTPBase(endpoints[i], b.c.tls != nil)), append(b.statuses, s)
	}
	if len(b.bases) == 0 {
		return failf(codeError, "no endpoint makes backups (%w)", why)
	}
	return nil
}

func (b *backups) ask(ctx context.Context, method, base string, query url.Values, answer any) error {
	if base == "" {
		return errors.New("it is not reached by HTTP")
	}
	req, err := http.NewRequestWithContext(ctx, method, base+backup.Path+"?"+query.Encode(), nil)
	if err != nil {
		return err
	}
	if b.token != "" {
		req.Header.Set("Authorization", b.token)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBackupAnswer))
	switch {
	case err != nil:
		return err
	case resp.StatusCode == http.StatusNotFound:
		return errors.New("it was started without --backup-to, or is no Belay")
	case resp.StatusCode != http.StatusOK:
		return errors.New(strings.TrimSpace(string(body)))
	}
	return json.Unmarshal(body, answer)
}

// leader is the base of the member that makes the backups.
func (b *backups) leader() (string, error) {
	for i, s := range b.statuses {
		if s.Leading {
			return b.bases[i], nil
		}
	}
	b.tellSilent()
	return "", failf(codeError, "none of the endpoints leads: name all members with --endpoints, or wait for a leader")
}

// order has the leader do something, and says what came of it.
func (b *backups) order(ctx context.Context, query url.Values) error {
	base, err := b.leader()
	if err != nil {
		return err
	}
	var out backup.Outcome
	if err := b.ask(ctx, http.MethodPost, base, query, &out); err != nil {
		return fail(codeError, err)
	}
	if b.json {
		if err := b.printJSON(out); err != nil {
			return err
		}
		if out.Error != "" {
			return &exitError{code: codeError}
		}
		return nil
	}
	switch {
	case out.Error != "":
		return failf(codeError, "%s", out.Error)
	case out.Unchanged:
		fmt.Fprintf(b.c.out, "%s: %s, revision %d; nothing was written since\n", out.Name, out.State, out.Revision)
	default:
		fmt.Fprintf(b.c.out, "%s: %s, revision %d\n", out.Name, out.State, out.Revision)
	}
	return nil
}

func (b *backups) printJSON(v any) error {
	text, err := json.Marshal(v)
	if err == nil {
		_, err = fmt.Fprintf(b.c.out, "%s\n", text)
	}
	return err
}

// tellSilent says who did not answer, and why.
func (b *backups) tellSilent() {
	for _, err := range b.silent {
		fmt.Fprintln(b.c.err, err)
	}
}

func (b *backups) status() error {
	b.tellSilent()
	if b.json {
		return b.printJSON(b.statuses)
	}
	for _, s := range b.statuses {
		role := "follows: it makes backups when the leader asks it"
		if s.Leading {
			role = "leads: it decides when backups are made, and by whom"
		}
		fmt.Fprintf(b.c.out, "%s %s\n", s.Member, role)
		every := s.Every
		if s.Increments != "" {
			every += ", increments every " + s.Increments
		}
		fmt.Fprintf(b.c.out, "  to         %s, every %s\n", s.To, every)
		if s.Leading {
			last := "none yet"
			if s.LastGood != nil {
				last = fmt.Sprintf("%s, %v ago", stamp(*s.LastGood), time.Since(*s.LastGood).Round(time.Second))
			}
			if s.TooOld {
				last += "; TOO OLD: at most " + s.MaxAge + " is allowed"
			}
			fmt.Fprintf(b.c.out, "  last good  %s\n", last)
		}
		if r := s.Running; r != nil {
			by := ""
			if r.By != "" {
				by = r.By + ": "
			}
			doing := strings.TrimSpace(r.Doing + " " + string(r.Kind)) // which kind it is shows later
			fmt.Fprintf(b.c.out, "  now        %s%s, since %s, %s saved\n", by, doing, stamp(r.Since), show.Bytes(r.Bytes))
		}
		if s.LastError != "" {
			fmt.Fprintf(b.c.out, "  last error %s: %s\n", stamp(s.LastErrorAt), s.LastError)
		}
	}
	return nil
}

func (b *backups) list(ctx context.Context) error {
	base, err := b.leader()
	if err != nil {
		return err
	}
	var s backup.Status
	if err := b.ask(ctx, http.MethodGet, base, url.Values{"list": {"1"}}, &s); err != nil {
		return fail(codeError, err)
	}
	if b.json {
		return b.printJSON(s.Backups)
	}
	rows := [][]string{backup.Columns()}
	for _, l := range s.Backups {
		rows = append(rows, l.Row())
	}
	if b.table {
		var out bytes.Buffer
		show.Table(&out, rows)
		_, err := b.c.out.Write(out.Bytes())
		return err
	}
	t := tabwriter.NewWriter(b.c.out, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	return t.Flush()
}
