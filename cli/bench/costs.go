package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/belaydb/belay/cli/connect"
	"github.com/belaydb/belay/neighbours"
)

// maxMetrics is how much of a member's metrics is read, bytes.
const maxMetrics = 16 << 20

// spent is what one member has used up to now.
type spent struct {
	cpu     float64 // seconds
	rss     float64 // bytes
	written int64   // bytes, by /proc of this machine; -1: not to be seen
}

// costs are what a run has cost.
type costs struct {
	Members int `json:"members"` // of the cluster, as far as it says
	Seen    int `json:"seen"`    // of those, whose metrics could be read at both ends
	// CPU is of all that were seen, seconds; RSS the largest one's at the end, bytes.
	CPU float64 `json:"server_cpu_seconds"`
	RSS float64 `json:"largest_rss_bytes"`
	// Written is what the kernel charged the members for writing, bytes; -1: a member is not on this
	// machine or may not be looked at.
	Written int64   `json:"written_bytes"`
	Client  float64 `json:"client_cpu_seconds"`
}

// A meter reads what the members of a target have spent where a run begins and ends.
type meter struct {
	http    *http.Client
	members [][]string // base URLs of each member, any of which will do
	pids    map[string]int

	begun         bool
	before, after map[int]spent
	client        time.Duration
	ended         bool
}

// newMeter finds the members. That some cannot be asked is no error: less is told.
func newMeter(ctx context.Context, t *target) *meter {
	secure := t.tls != nil
	m := &meter{http: &http.Client{Timeout: answerWithin, Transport: &http.Transport{TLSClientConfig: t.tls}}, pids: localMembers()}
	ctx, cancel := context.WithTimeout(ctx, answerWithin)
	defer cancel()
	if list, err := t.client(0).MemberList(ctx); err == nil {
		for _, one := range list.Members {
			if bases := basesOf(one.ClientURLs, secure); len(bases) > 0 {
				m.members = append(m.members, bases)
			}
		}
	}
	if len(m.members) == 0 {
		for _, ep := range t.endpoints {
			m.members = append(m.members, basesOf([]string{ep}, secure))
		}
	}
	return m
}

func basesOf(urls []string, secure bool) (all []string) {
	for _, u := range urls {
		if base := connect.HTTPBase(u, secure); base != "" {
			all = append(all, base)
		}
	}
	return all
}

// localMembers are the processes of members on this machine by the port that they listen on.
func localMembers() map[string]int {
	byPort := map[string]int{}
	members, _ := neighbours.FindMembers() // none, where they cannot be seen
	for _, t := range members {
		for _, address := range neighbours.Ports(t.PID) {
			if _, port, err := net.SplitHostPort(address); err == nil {
				byPort[port] = t.PID
			}
		}
	}
	return byPort
}

// begin reads what has been spent so far.
func (m *meter) begin(ctx context.Context) error {
	m.begun, m.before, m.client = true, m.read(ctx), ownCPU()
	return nil
}

func (m *meter) end(ctx context.Context) {
	m.client = ownCPU() - m.client
	m.ended, m.after = true, m.read(context.WithoutCancel(ctx))
}

// costs is the difference; nil if no member could be seen.
func (m *meter) costs() *costs {
	c := &costs{Members: len(m.members), Client: m.client.Seconds()}
	for i, after := range m.after {
		before, ok := m.before[i]
		if !ok || after.cpu < before.cpu {
			continue // it was not there, or is another process
		}
		c.Seen++
		c.CPU += after.cpu - before.cpu
		c.RSS = max(c.RSS, after.rss)
		if before.written < 0 || after.written < 0 || c.Written < 0 {
			c.Written = -1
		} else {
			c.Written += after.written - before.written
		}
	}
	if c.Seen == 0 {
		return nil
	}
	if c.Seen < c.Members {
		c.Written = -1
	}
	return c
}

// read asks all members at once.
func (m *meter) read(ctx context.Context) map[int]spent {
	all := map[int]spent{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i, bases := range m.members {
		wg.Go(func() {
			for _, base := range bases {
				s, err := m.scrape(ctx, base)
				if err != nil {
					continue
				}
				mu.Lock()
				all[i] = s
				mu.Unlock()
				return
			}
		})
	}
	wg.Wait()
	return all
}

func (m *meter) scrape(ctx context.Context, base string) (spent, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/metrics", nil)
	if err != nil {
		return spent{}, err
	}
	resp, err := m.http.Do(req)
	if err != nil {
		return spent{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return spent{}, fmt.Errorf("%s: %s", base, resp.Status)
	}
	s, err := readSpent(io.LimitReader(resp.Body, maxMetrics))
	s.written = m.written(base)
	return s, err
}

// readSpent finds the two families in a page of metrics.
func readSpent(page io.Reader) (s spent, err error) {
	found := false
	lines := bufio.NewScanner(page)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		switch name {
		case "process_cpu_seconds_total":
			s.cpu, err = strconv.ParseFloat(value, 64)
			found = err == nil
		case "process_resident_memory_bytes":
			s.rss, _ = strconv.ParseFloat(value, 64)
		}
	}
	if !found {
		return s, fmt.Errorf("no CPU time among the metrics (%w)", lines.Err())
	}
	return s, nil
}

// written is what a member of this machine was charged for; -1 if it is another's.
func (m *meter) written(base string) int64 {
	u, err := url.Parse(base)
	if err != nil || !isLocal(u.Hostname()) {
		return -1
	}
	pid, ok := m.pids[u.Port()]
	if !ok {
		return -1
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return -1
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
				return n
			}
		}
	}
	return -1
}

// isLocal reports whether a host is this machine.
func isLocal(host string) bool {
	return host == "localhost" || connect.OwnAddress(host)
}
