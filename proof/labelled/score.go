package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/belaydb/belay/cli/doctor/logs"
	"github.com/belaydb/belay/cli/doctor/report"
	"github.com/belaydb/belay/proof/cluster"
)

// Who is scored.
const (
	sourceVerdicts = "Belay's verdicts"
	sourceLogs     = "doctor logs on etcd's logs alone"
	sourceOwnLogs  = "doctor logs on Belay's logs, without their verdicts"
)

// memberReport is what is read of a member's answer at /debug/belay/events.
type memberReport struct {
	Open     string    `json:"open_incident"`
	Verdicts []verdict `json:"verdicts"`
}

type verdict struct {
	Time     time.Time `json:"time"`
	Incident string    `json:"incident"`
	Cause    string    `json:"cause"`
	Members  []string  `json:"members"`
	Links    []string  `json:"links"`
	Evidence []string  `json:"evidence"`
	Also     []string  `json:"also"`
}

// statement is what was said of the time of an incident.
type statement struct {
	cause   string
	members []string
	links   []string // "a→b" or "a–b"
	sure    bool
	says    string // in whole
	earlier bool   // it was said shortly before the incident, and what is the same again is no news
	also    []string
}

// unsure says whether it names no cause.
func (s *statement) unsure() bool { return slices.Contains(unsure, s.cause) }

// verdictsOf are the statements of Belay's members.
func verdictsOf(i *incident) (all []statement, err error) {
	paths, err := filepath.Glob(filepath.Join(i.dir, "events-*.json.gz"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		data, err := kept(path)
		if err != nil {
			return nil, err
		}
		var r memberReport
		if err := json.Unmarshal(data, &r); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		for _, v := range r.Verdicts {
			if v.Time.Before(i.Began.Add(-notNews)) || v.Time.After(i.Settled) {
				continue
			}
			all = append(all, statement{
				earlier: v.Time.Before(i.Began),
				cause:   v.Cause, members: v.Members, links: v.Links, sure: true, also: v.Also,
				says: fmt.Sprintf("%s: %s %s %s: %s", v.Incident, v.Cause, strings.Join(v.Members, "+"), strings.Join(v.Links, " "), strings.Join(v.Evidence, "; ")),
			})
		}
	}
	return all, nil
}

// archive are the logs of lives, read once.
type archive map[string][]input

type input struct {
	name string
	data []byte
	at   time.Time
}

func (a archive) of(dir string) ([]input, error) {
	if all, ok := a[dir]; ok {
		return all, nil
	}
	paths, err := filepath.Glob(filepath.Join(dir, "*.log.gz"))
	if err != nil {
		return nil, err
	}
	for _, path := range paths {
		data, err := kept(path)
		if err != nil {
			return nil, err
		}
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		a[dir] = append(a[dir], input{filepath.Base(path), data, info.ModTime()})
	}
	return a[dir], nil
}

// logsOf are the statements of doctor logs on the time of an incident. Its logs are there when the
// life has ended.
func logsOf(i *incident, all archive) (said []statement, err error) {
	inputs, err := all.of(i.life())
	if err != nil {
		return nil, err
	}
	if len(inputs) == 0 {
		return nil, fs.ErrNotExist
	}
	c := logs.NewCollector(logs.Options{Since: i.Began.Add(-time.Second), Until: i.Settled})
	for _, in := range inputs {
		data := until(in.data, i.Settled)
		if i.Kind == cluster.Belay {
			data = withoutVerdicts(data)
		}
		c.Read(bytes.NewReader(data), in.name, in.at)
	}
	r, err := c.Judge(logs.Ask{Subject: "kept", At: i.Settled})
	if err != nil {
		return nil, err
	}
	result, ok := r.Data.(logs.Result)
	if !ok {
		return nil, errors.New("doctor logs: no incidents in its data")
	}
	for _, found := range result.Incidents {
		s := statement{cause: found.Cause, sure: found.Confidence == report.Certain, also: found.Also, says: fmt.Sprintf("%s %s %s", found.Confidence, found.Cause, found.Member)}
		if found.Member != "" {
			s.members = strings.Split(found.Member, ", ")
		}
		said = append(said, s)
	}
	return said, nil
}

// until is the part of a log in JSON that was written before a time; what is later is not asked for.
func until(data []byte, end time.Time) []byte {
	const key = `"ts":"`
	limit := end.Add(time.Second).UTC().Format("2006-01-02T15:04:05") // as both programs write times
	offset := 0
	for line := range bytes.Lines(data) {
		if at := bytes.Index(line, []byte(key)); at >= 0 {
			if ts := line[at+len(key):]; len(ts) > len(limit) && string(ts[:len(limit)]) > limit {
				return data[:offset]
			}
		}
		offset += len(line)
	}
	return data
}

// withoutVerdicts leaves Belay's own verdicts out of a log: they are scored by themselves.
func withoutVerdicts(data []byte) []byte {
	var b bytes.Buffer
	for line := range bytes.Lines(data) {
		if !bytes.Contains(line, []byte("verdict on an incident")) {
			b.Write(line)
		}
	}
	return b.Bytes()
}

// outcome is how the statements on an incident compare with the truth.
type outcome struct {
	*incident
	said                      []statement
	told                      bool // something was said that is more than "nothing happened"
	again                     bool // nothing was said, and the right thing had been said minutes before
	member, cause, both       bool // right at least once
	bothOfPair                bool // both faults of a pair are named, in whatever statement
	wrong, wrongSure, falsely []statement
}

// changed says whether leadership moved.
func (o *outcome) changed() bool { return o.Terms > 0 || o.Before != o.After }

// compare judges statements.
func compare(i *incident, source string, said []statement) *outcome {
	o := &outcome{incident: i, said: said}
	named := map[int]bool{}
	for _, s := range said {
		if s.cause == "quiet" {
			continue
		}
		if s.earlier {
			o.again = o.again || slices.ContainsFunc(i.Faults, func(f Fault) bool {
				return slices.Contains(f.right(source), s.cause) && f.isOf(&s)
			})
			continue
		}
		o.told = true
		if len(i.Faults) == 0 {
			if !s.unsure() {
				o.falsely = append(o.falsely, s)
			}
			continue
		}
		right := s.unsure()
		for n, f := range i.Faults {
			cause := slices.Contains(f.right(source), s.cause)
			member := f.isOf(&s)
			o.cause = o.cause || cause
			o.member = o.member || member
			if cause && member {
				o.both, right = true, true
				named[n] = true
			}
			right = right || cause && len(s.members) == 0 // it accuses nobody
			for _, also := range s.also {
				if f.mentioned(also, source) {
					named[n] = true
				}
			}
		}
		// One cause of several members at once, each of which has it.
		if !right && len(i.Faults) > 1 && i.explainedTogether(&s, source) {
			o.both, o.cause, o.member, right = true, true, true, true
		}
		if !right {
			o.wrong = append(o.wrong, s)
			if s.sure {
				o.wrongSure = append(o.wrongSure, s)
			}
		}
	}
	o.again = o.again && !o.told
	o.bothOfPair = len(i.Faults) == 2 && len(named) == 2
	return o
}

// isOf says whether a statement names the members of a fault.
func (f *Fault) isOf(s *statement) bool {
	switch {
	case f.Name == "cut-link":
		// The link between two: it names that link, or one or both of its ends, and nothing else.
		for _, m := range s.members {
			if !slices.Contains(f.Members, m) {
				return false
			}
		}
		for _, l := range s.links {
			for _, end := range strings.FieldsFunc(l, func(r rune) bool { return r == '→' || r == '–' }) {
				if !slices.Contains(f.Members, end) {
					return false
				}
			}
		}
		return true
	case len(f.Members) == 3:
		return len(s.members) == 0 || len(s.members) == 3
	}
	got := slices.Sorted(slices.Values(s.members))
	return slices.Equal(got, slices.Sorted(slices.Values(f.Members)))
}

// mentioned says whether a text beside a verdict, "cause: evidence" or "cause member", is of a fault.
func (f *Fault) mentioned(also, source string) bool {
	name, rest, _ := strings.Cut(strings.Replace(also, ":", " ", 1), " ")
	return slices.Contains(f.right(source), name) && (len(f.Members) != 1 || strings.Contains(rest, f.Members[0]))
}

// explainedTogether says whether a statement names several members, each with a fault of this
// cause.
func (i *incident) explainedTogether(s *statement, source string) bool {
	if len(s.members) < 2 {
		return false
	}
	for _, m := range s.members {
		if !slices.ContainsFunc(i.Faults, func(f Fault) bool {
			return slices.Contains(f.right(source), s.cause) && slices.Contains(f.Members, m)
		}) {
			return false
		}
	}
	return true
}

// scored are all outcomes of one source.
type scored struct {
	source   string
	outcomes []*outcome
}

// scoreKept scores all that is kept below dir, or one half of it.
func scoreKept(dir, half string) ([]scored, error) {
	all, err := load(dir)
	if err != nil {
		return nil, err
	}
	verdicts, etcd, own := scored{source: sourceVerdicts}, scored{source: sourceLogs}, scored{source: sourceOwnLogs}
	lives := archive{}
	for _, i := range all {
		if half == "even" && !i.even() || half == "odd" && i.even() {
			continue
		}
		if i.Kind == cluster.Belay {
			said, err := verdictsOf(i)
			if err != nil {
				return nil, err
			}
			verdicts.outcomes = append(verdicts.outcomes, compare(i, sourceVerdicts, said))
		}
		said, err := logsOf(i, lives)
		if errors.Is(err, fs.ErrNotExist) {
			continue // its cluster still runs
		}
		if err != nil {
			return nil, err
		}
		if i.Kind == cluster.Etcd {
			etcd.outcomes = append(etcd.outcomes, compare(i, sourceLogs, said))
		} else {
			own.outcomes = append(own.outcomes, compare(i, sourceOwnLogs, said))
		}
	}
	return []scored{verdicts, etcd, own}, nil
}
