package dev

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/internal/fault"
)

// three is a cluster of three members that were never started.
func three() *cluster {
	opts := Options{Members: 3, BasePort: 7000, DataDir: "/data", Program: "belay", Stdout: &bytes.Buffer{}}
	c := &cluster{opts: opts, members: opts.members(), ctx: context.Background(), ids: map[string]string{}}
	for _, m := range c.members {
		c.processes = append(c.processes, &process{member: m, ended: true})
	}
	return c
}

// TestParseFaults has what is typed, with what it breaks around each member, or the error.
func TestParseFaults(t *testing.T) {
	const m1, m2, m3 = "127.0.0.1:7001", "127.0.0.1:7003", "127.0.0.1:7005"
	cut, slow := fault.Way{Cut: true}, fault.Way{Delay: 200 * time.Millisecond}
	type links = map[string]fault.Link
	for line, want := range map[string]struct {
		at    map[string]fault.State
		lasts time.Duration
		what  string
	}{
		"partition m1": {what: "m1 is cut off from m2 and m3", at: map[string]fault.State{
			"m1": {Links: links{m2: {Out: cut, In: cut}, m3: {Out: cut, In: cut}}},
			"m2": {Links: links{m1: {Out: cut, In: cut}}}, "m3": {Links: links{m1: {Out: cut, In: cut}}}}},
		"partition m1 m3 one-way for 5s": {what: "nothing that m1 says reaches m3", lasts: 5 * time.Second, at: map[string]fault.State{
			"m1": {Links: links{m3: {Out: cut}}}, "m3": {Links: links{m1: {In: cut}}}}},
		"delay m2 m1 200ms --for=1m": {what: "each message both ways from m2 to m1 takes 200ms", lasts: time.Minute, at: map[string]fault.State{
			"m2": {Links: links{m1: {Out: slow, In: slow}}}, "m1": {Links: links{m2: {Out: slow, In: slow}}}}},
		"loss m1 m2 2.5% --one-way": {what: "2.5 % of what goes from m1 to m2 is lost and sent again", at: map[string]fault.State{
			"m1": {Links: links{m2: {Out: fault.Way{Loss: 0.025}}}}, "m2": {Links: links{m1: {In: fault.Way{Loss: 0.025}}}}}},
		"disk m3 slow 300ms": {what: "each sync of m3's disk takes 300ms longer", at: map[string]fault.State{
			"m3": {Log: fault.Disk{Delay: 300 * time.Millisecond}, Store: fault.Disk{Delay: 300 * time.Millisecond}}}},
		"disk m3 stall log --for 2s": {what: "m3's raft log's disk stalls: no sync ends", lasts: 2 * time.Second, at: map[string]fault.State{
			"m3": {Log: fault.Disk{Stall: true}}}},
		"disk m3 stall 7s": {what: "m3's disk stalls: no sync ends", lasts: 7 * time.Second, at: map[string]fault.State{
			"m3": {Log: fault.Disk{Stall: true}, Store: fault.Disk{Stall: true}}}},
		"disk m1 full store": {what: "m1's store's disk is full", at: map[string]fault.State{"m1": {Store: fault.Disk{Full: true}}}},
	} {
		c := three()
		b, err := c.parse(strings.Fields(line))
		if err != nil {
			t.Errorf("%s: %v", line, err)
			continue
		}
		if b.what() != want.what || b.lasts != want.lasts {
			t.Errorf("%s: %q for %s", line, b.what(), b.lasts)
		}
		c.breakages = append(c.breakages, b)
		for _, m := range c.members {
			if have, want := c.breakages.around(c.members, m.name), want.at[m.name]; fmt.Sprint(have) != fmt.Sprint(fault.State{Links: nonNil(want.Links), Log: want.Log, Store: want.Store}) {
				t.Errorf("%s: %s has %+v, want %+v", line, m.name, have, want)
			}
		}
		if text := c.explain(b, "m1"); !strings.Contains(text, "etcd") || !strings.Contains(text, "verdict") {
			t.Errorf("%s: says %s", line, text)
		} else {
			for row := range strings.Lines(text) {
				if len(row) > 81 {
					t.Errorf("%s: a row of %d columns: %s", line, len(row)-1, row)
				}
			}
		}
	}

	// The log's disk is what is waited for before a write is acknowledged, and has metrics of its own.
	for _, line := range []string{"disk m1 stall store", "disk m1 slow 300ms store"} {
		c := three()
		b, err := c.parse(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(strings.Fields(c.explain(b, "m1")), " "); !strings.Contains(text, "metric belay_store_state") ||
			!strings.Contains(text, "when much is written") || strings.Contains(text, "acknowledges 300ms later") {
			t.Errorf("%s: says %s", line, text)
		}
	}

	for line, want := range map[string]string{
		"partition":               "which member? There are m1 down",
		"partition m9":            `"m9" is no member`,
		"partition leader":        "nobody is known to lead",
		"partition follower":      "nobody is known to lead",
		"partition m1 m1":         "m1 is named twice",
		"partition m1 10%":        `"10%" is no member`,
		"partition m1 for":        "for how long? As in: for 5s",
		"partition m1 for 5":      `"5" is no time`,
		"partition m1 for 0s":     "not between 1ms and 24h",
		"partition m1 --for=-1s":  "not between 1ms and 24h",
		"delay m1":                "how long is each message under way? As in: delay m1 200ms",
		"delay m1 200":            `"200" is no time`,
		"delay m1 2h":             "not between 1ms and 1m",
		"delay m1 200ms 300ms":    `"300ms" is not understood; as in: delay m1 200ms`,
		"loss m1":                 `"" is not between 0 and 90 %`,
		"loss m1 100%":            "not between 0 and 90 %",
		"loss m1 NaN":             "not between 0 and 90 %",
		"loss m1 much":            "as in: loss m1 10%",
		"disk m1":                 "is none of slow, stall, full",
		"disk m1 broken":          `"broken" is none of slow, stall, full`,
		"disk m1 slow":            "how much longer does each sync take? As in: disk m1 slow 300ms",
		"disk m1 stall wal":       `"wal" is not understood`,
		"disk m1 stall one-way":   "one-way is for links",
		"pause m1 now":            `"now" is not understood`,
		"kill m1 m2":              `"m2" is not understood`,
		"disk m1 stall 5s for 2s": `"5s" is not understood`,
	} {
		if b, err := three().parse(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v, want %q", line, b, err, want)
		}
	}
	alone := three()
	alone.members, alone.processes = alone.members[:1], alone.processes[:1]
	if _, err := alone.parse([]string{"partition", "m1"}); err == nil || !strings.Contains(err.Error(), "it has no links") {
		t.Error(err)
	}
}

func nonNil(l map[string]fault.Link) map[string]fault.Link {
	if l == nil {
		l = map[string]fault.Link{}
	}
	return l
}

// Faults add up, a second of the same kind takes the place of the first, and each is undone alone.
func TestFaultsTogether(t *testing.T) {
	c := three()
	for _, line := range []string{"delay m1 100ms", "delay m2 m1 50ms one-way", "loss m1 m2 5%", "disk m1 slow 20ms", "delay m1 200ms"} {
		if _, err := c.command(strings.Fields(line)); err != nil {
			t.Fatal(err)
		}
	}
	want := fault.Link{Out: fault.Way{Delay: 200 * time.Millisecond, Loss: 0.05}, In: fault.Way{Delay: 250 * time.Millisecond, Loss: 0.05}}
	if have := c.breakages.around(c.members, "m1").Links["127.0.0.1:7003"]; have != want {
		t.Errorf("%+v, want %+v", have, want)
	}
	if _, err := c.command([]string{"heal", "m2"}); err != nil || len(c.breakages) != 3 {
		t.Errorf("%v, left %s", err, c.breakages)
	}
	if _, err := c.command([]string{"heal", "m3", "m1"}); err == nil {
		t.Error("heal takes two members")
	}
	if _, err := c.command([]string{"pause", "m1"}); err == nil || !strings.Contains(err.Error(), "m1 does not run") {
		t.Error(err)
	}
	if _, err := c.command([]string{"heal"}); err != nil || len(c.breakages) != 0 {
		t.Errorf("%v, left %s", err, c.breakages)
	}
}

// A path that is too long for a socket is no hindrance, and nobody else may give commands.
func TestControl(t *testing.T) {
	for _, name := range []string{"short", strings.Repeat("long", 40)} {
		r := launch(t, "", func(o *Options) { o.DataDir = filepath.Join(t.TempDir(), name) })
		r.out.await(t, "Ctrl-C stops all members")
		for path, mode := range map[string]os.FileMode{controlName: 0o700, filepath.Join(controlName, socketName): 0o600} {
			info, err := os.Stat(filepath.Join(r.opts.DataDir, path))
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode().Perm() != mode {
				t.Errorf("%s has mode %v", path, info.Mode())
			}
		}
		run := func(args ...string) (int, string) {
			var out bytes.Buffer
			code := Main(append([]string{FaultCommand, "--data-dir", r.opts.DataDir}, args...), nil, &out, &out)
			return code, out.String()
		}
		if code, text := run("delay", "m1", "200ms"); code != 0 || !strings.Contains(text, "each message both ways from m1 to m2 and m3 takes 200ms") {
			t.Errorf("code %d: %s", code, text)
		}
		r.out.await(t, "from another terminal: delay m1 200ms")
		if code, text := run("faults"); code != 0 || !strings.Contains(text, "takes 200ms") {
			t.Errorf("code %d: %s", code, text)
		}
		if code, text := run("delay", "m7", "200ms"); code != 1 || !strings.Contains(text, `"m7" is no member`) {
			t.Errorf("code %d: %s", code, text)
		}
		if code, text := run("quit"); code != 1 || !strings.Contains(text, "Ctrl-C") {
			t.Errorf("code %d: %s", code, text)
		}
		if code, text := run("heal"); code != 0 || !strings.Contains(text, "well again") {
			t.Errorf("code %d: %s", code, text)
		}
		if code, text := run("kill", "m3", "--for", "10m"); code != 0 || !strings.Contains(text, "starts again after 10m") {
			t.Errorf("code %d: %s", code, text)
		}
		r.out.await(t, "m3 ended by signal 9")
		if code, text := run("heal", "m3"); code != 0 || !strings.Contains(text, "m3 starts, with pid") {
			t.Errorf("code %d: %s", code, text)
		}
		r.out.await(t, "m3 serves again")
		if code, text := run("pause", "m2"); code != 0 || !strings.Contains(text, "m2 is paused") {
			t.Errorf("code %d: %s", code, text)
		}
		if code, text := run("pause", "m2"); code != 1 || !strings.Contains(text, "paused already") {
			t.Errorf("code %d: %s", code, text)
		}
		r.interrupts <- os.Interrupt // also of one that is paused
		if err := r.wait(); err != nil {
			t.Error(err)
		}
		if code, text := run("faults"); code != 1 || !strings.Contains(text, "no belay dev runs in") {
			t.Errorf("code %d: %s", code, text)
		}
	}
	for want, args := range map[string][]string{
		"which fault?":                  nil,
		"not defined: -nonsense":        {"--nonsense"},
		"holds no cluster of belay dev": {"--data-dir", t.TempDir(), "faults"},
	} {
		var out bytes.Buffer
		if code := Main(append([]string{FaultCommand}, args...), nil, &out, &out); code == 0 || !strings.Contains(out.String(), want) {
			t.Errorf("%v: code %d: %s", args, code, &out)
		}
	}
	var out bytes.Buffer
	if code := Main([]string{FaultCommand, "--help"}, nil, &out, &out); code != 0 || !strings.Contains(out.String(), "partition m2") {
		t.Errorf("code %d: %s", code, &out)
	}
}

// Completion knows the commands, the members of the cluster that runs, and what follows them.
func TestCompleteFault(t *testing.T) {
	dir := t.TempDir()
	opts := Options{Members: 2, BasePort: freePorts(t, 4), DataDir: dir}
	if err := opts.prepare(opts.members()); err != nil {
		t.Fatal(err)
	}
	at := []string{"--data-dir", dir}
	for want, words := range map[string][]string{
		"partition pause":           append(at[:2:2], "pa"),
		"--data-dir":                {"--d"},
		"m1 m2 leader follower":     append(at[:2:2], "kill", ""),
		"slow stall full":           append(at[:2:2], "disk", "m1", ""),
		"log store for":             append(at[:2:2], "disk", "m1", "stall", ""),
		"m1 m2 leader one-way for":  append(at[:2:2], "partition", "m1", ""),
		"for":                       append(at[:2:2], "pause", "m1", ""),
		"":                          append(at[:2:2], "faults", ""),
		"m1 m2 leader follower all": append(at[:2:2], "heal", ""),
	} {
		var have []string
		for _, c := range CompleteFault(words) {
			have = append(have, c[0])
		}
		if strings.Join(have, " ") != want {
			t.Errorf("%q: %q, want %q", words, have, want)
		}
	}
}
