package follow

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// Forms of a webhook's body.
const (
	FormAlertmanager = "alertmanager" // POST /api/v2/alerts of an Alertmanager
	FormSlack        = "slack"        // an incoming webhook of Slack, or of what speaks like it
	FormJSON         = "json"         // the Report itself
)

// Forms are all of them.
var Forms = [...]string{FormAlertmanager, FormSlack, FormJSON}

const (
	receiverTime = 10 * time.Second // that Receivers.Time is without a value
	tries        = 8                // of a webhook: over two minutes, in which a receiver is started again
	waiting      = 100              // reports that may wait for receivers; more are dropped, and that is said
	outputBytes  = 8 << 10          // of a command that are shown
)

// A Rate is how many reports may be sent within a time.
type Rate struct {
	Count  int
	Within time.Duration
}

// ParseRate reads "10/1h".
func ParseRate(text string) (Rate, error) {
	var r Rate
	count, within, ok := strings.Cut(text, "/")
	if _, err := fmt.Sscanf(count, "%d", &r.Count); !ok || err != nil || r.Count < 1 || fmt.Sprint(r.Count) != count {
		return r, fmt.Errorf("%q: how many within what time, as in 10/1h", text)
	}
	d, err := time.ParseDuration(within)
	if err != nil || d < time.Second {
		return r, fmt.Errorf("%q: how many within what time, a second at least, as in 10/1h", text)
	}
	r.Within = d
	return r, nil
}

// Receivers say who gets reports besides the terminal.
type Receivers struct {
	Exec    []string // a program and its arguments; nil: none
	Webhook string   // a URL; empty: none
	Form    string   // of the webhook's body
	AtMost  Rate
	Labels  map[string]string // of Alertmanager's alerts, beside those of the report

	Trouble func(string)  // is told what went wrong; may be called from any goroutine
	Time    time.Duration // of a command, and of one try of a webhook; 0: 10 s
	Again   time.Duration // before a webhook is tried again, and twice that the next time; 0: 1 s
}

// A Deliverer brings reports to receivers, to each one after the other, and never holds up who
// reports, nor the program while the webhook does not answer.
type Deliverer struct {
	o     Receivers
	http  *http.Client
	runs  chan Report // for the program
	posts chan Report // for the webhook
	ended sync.WaitGroup

	sent    []time.Time // within o.AtMost.Within
	leftOut int         // since the last that was sent
}

// NewDeliverer makes one and starts its goroutines, which end with ctx or Close.
func NewDeliverer(ctx context.Context, o Receivers) *Deliverer {
	if o.Time == 0 {
		o.Time = receiverTime
	}
	if o.Again == 0 {
		o.Again = time.Second
	}
	d := &Deliverer{o: o, http: &http.Client{Timeout: o.Time}, runs: make(chan Report, waiting), posts: make(chan Report, waiting)}
	d.ended.Go(func() {
		for r := range d.runs {
			if err := d.run(ctx, r); err != nil && ctx.Err() == nil {
				d.o.Trouble(fmt.Sprintf("%s: %v", d.o.Exec[0], err))
			}
		}
	})
	d.ended.Go(func() {
		for r := range d.posts {
			if err := d.post(ctx, r); err != nil && ctx.Err() == nil {
				d.o.Trouble(fmt.Sprintf("webhook: %v", err))
			}
		}
	})
	return d
}

// Put hands a report over, unless too many were sent lately. Only who calls Close last calls it.
func (d *Deliverer) Put(r Report) {
	if d.o.Exec == nil && d.o.Webhook == "" {
		return
	}
	now := time.Now()
	for len(d.sent) > 0 && now.Sub(d.sent[0]) >= d.o.AtMost.Within {
		d.sent = d.sent[1:]
	}
	if len(d.sent) >= d.o.AtMost.Count {
		if d.leftOut == 0 {
			d.o.Trouble(fmt.Sprintf("%d reports were sent within %s: more are printed here only (--at-most)", len(d.sent), d.o.AtMost.Within))
		}
		d.leftOut++
		return
	}
	r.LeftOut = d.leftOut
	taken := false
	put := func(wanted bool, name string, queue chan Report) {
		if !wanted {
			return
		}
		select {
		case queue <- r:
			taken = true
		default:
			d.o.Trouble(fmt.Sprintf("%s is %d reports behind and does not get this one", name, waiting))
		}
	}
	put(d.o.Exec != nil, "the program", d.runs)
	put(d.o.Webhook != "", "the webhook", d.posts)
	if !taken {
		d.leftOut++
		return
	}
	d.leftOut = 0
	d.sent = append(d.sent, now)
}

// Close takes no more and waits for what is under way.
func (d *Deliverer) Close() {
	close(d.runs)
	close(d.posts)
	d.ended.Wait()
	d.http.CloseIdleConnections()
}

// Environment is the report as variables. What others have written, such as a member's name, is
// kept to one line.
func (r *Report) Environment() []string {
	line := func(text string) string {
		return strings.Map(func(c rune) rune {
			if c < ' ' || c == 0x7f {
				return ' '
			}
			return c
		}, text)
	}
	var env []string
	for _, v := range [][2]string{
		{"EVENT", r.Event}, {"TIME", r.Time.UTC().Format(time.RFC3339)}, {"OLD_LEADER", r.From}, {"NEW_LEADER", r.To},
		{"TERM", fmt.Sprint(r.Term)}, {"WITHOUT_LEADER_SECONDS", fmt.Sprintf("%.3f", r.Without)}, {"MEMBER", r.Member},
		{"CAUSE", r.Cause}, {"SURE", r.Sure}, {"EVIDENCE", strings.Join(r.Evidence, "; ")}, {"ADVICE", r.Advice},
		{"WOULD_TELL", r.Tells}, {"MISSED", fmt.Sprint(r.Missed)}, {"LEFT_OUT", fmt.Sprint(r.LeftOut)}, {"LINE", r.Line()},
	} {
		env = append(env, "BELAY_"+v[0]+"="+line(v[1]))
	}
	return env
}

// run starts the command: no shell reads anything of the report.
func (d *Deliverer) run(ctx context.Context, r Report) error {
	ctx, cancel := context.WithTimeout(ctx, d.o.Time)
	defer cancel()
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, d.o.Exec[0], d.o.Exec[1:]...)
	cmd.Env = append(os.Environ(), r.Environment()...)
	cmd.Stdin = bytes.NewReader(append(body, '\n'))
	var out bounded
	cmd.Stdout, cmd.Stderr = &out, &out
	alone(cmd)
	cmd.WaitDelay = time.Second // for a grandchild that holds its output open
	err = cmd.Run()
	if text := strings.TrimSpace(out.String()); text != "" {
		d.o.Trouble(d.o.Exec[0] + " says: " + text)
	}
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("it did not end within %s and was killed", d.o.Time)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil // it ended; what it started goes on
	}
	return err
}

// bounded keeps the beginning of what is written to it.
type bounded struct {
	mu sync.Mutex
	b  []byte
}

func (b *bounded) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.b = append(b.b, p[:min(len(p), outputBytes-len(b.b))]...)
	return len(p), nil
}

func (b *bounded) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return string(b.b)
}

// CheckWebhook says what is wrong with a URL and a form, and returns where to post: the API of an
// Alertmanager if only its address is given.
func CheckWebhook(address, form string) (string, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("%q is no URL that begins with http:// or https://", address)
	}
	switch form {
	case FormAlertmanager:
		if u.Path == "" || u.Path == "/" {
			u.Path = "/api/v2/alerts"
		}
	case FormSlack, FormJSON:
	default:
		return "", fmt.Errorf("form %q: one of %s", form, strings.Join(Forms[:], ", "))
	}
	return u.String(), nil
}

// An alert is one as Alertmanager's API v2 takes it.
type alert struct {
	Labels      map[string]string `json:"labels"`
	Annotations map[string]string `json:"annotations"`
	StartsAt    time.Time         `json:"startsAt"`
}

// Body is the report in a form of a webhook.
func (r *Report) Body(form string, labels map[string]string) ([]byte, error) {
	switch form {
	case FormAlertmanager:
		a := alert{Labels: map[string]string{"alertname": "EtcdLeaderChanged", "severity": "warning"}, Annotations: map[string]string{}, StartsAt: r.Time}
		set := func(m map[string]string, name, value string) {
			if value != "" { // an empty label is none
				m[name] = value
			}
		}
		for name, value := range labels {
			set(a.Labels, name, value)
		}
		set(a.Labels, "member", r.Member)
		set(a.Labels, "cause", r.Cause)
		set(a.Labels, "sure", r.Sure)
		set(a.Labels, "old_leader", r.From)
		set(a.Labels, "new_leader", r.To)
		summary := r.Summary()
		if r.LeftOut > 0 {
			summary += fmt.Sprintf(" (%d reports before it were not sent)", r.LeftOut)
		}
		set(a.Annotations, "summary", summary)
		set(a.Annotations, "description", strings.Join(r.Evidence, "; "))
		set(a.Annotations, "advice", r.Advice)
		set(a.Annotations, "term", fmt.Sprint(r.Term))
		set(a.Annotations, "would_tell", r.Tells)
		return json.Marshal([]alert{a})
	case FormSlack:
		text := r.Line()
		if len(r.Evidence) > 0 {
			text += "\n" + strings.Join(r.Evidence, "; ")
		}
		if r.Advice != "" {
			text += "\nAdvice: " + r.Advice
		}
		if r.LeftOut > 0 {
			text += fmt.Sprintf("\n%d reports before it were not sent", r.LeftOut)
		}
		// Slack reads these three as its own.
		text = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;").Replace(text)
		return json.Marshal(map[string]string{"text": text})
	}
	return json.Marshal(r)
}

// post tries a few times: what the receiver refuses for good is not sent again.
func (d *Deliverer) post(ctx context.Context, r Report) error {
	body, err := r.Body(d.o.Form, d.o.Labels)
	if err != nil {
		return err
	}
	wait := d.o.Again
	for try := 1; ; try++ {
		again, err := d.postOnce(ctx, body)
		if err == nil || !again {
			return err
		}
		if try == tries {
			return fmt.Errorf("given up after %d tries: %w", tries, err)
		}
		if try == 1 {
			d.o.Trouble(fmt.Sprintf("webhook: %v; it is tried again", err))
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(wait):
		}
		wait *= 2
	}
}

func (d *Deliverer) postOnce(ctx context.Context, body []byte) (again bool, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.o.Webhook, bytes.NewReader(body))
	if err != nil {
		return false, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := d.http.Do(req)
	if err != nil {
		// The URL may hold a secret, as Slack's do.
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err
		}
		return true, err
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(io.LimitReader(resp.Body, 300))
	if resp.StatusCode/100 == 2 {
		return false, nil
	}
	return resp.StatusCode/100 == 5 || resp.StatusCode == http.StatusTooManyRequests, errors.New(strings.TrimSuffix(resp.Status+": "+strings.TrimSpace(string(text)), ": "))
}
