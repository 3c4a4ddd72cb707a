package check

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestHistory asks by time what keys held, compares two revisions and brings an old value back, on
// Belay, which remembers times over kill -9, and on etcd, which does not.
func TestHistory(t *testing.T) {
	t.Parallel()
	t.Run("belay", func(t *testing.T) {
		t.Parallel()
		c := startCluster(t, cluster.Config{Kind: cluster.Belay, Size: 3})
		ctl := historian{t, c.Endpoints()}
		ctl.run("put", "a", "first") // revision 2
		times := filepath.Join(c.Members[0].DataDir, "member", "times")
		first := ctl.sighting("a", 2)
		ctl.run("put", "a", "second")                   // 3
		ctl.run("put", "b/1", "x")                      // 4
		ctl.sighting("b/1", 4)                          // so that the next ones are later
		ctl.run("del", "a")                             // 5
		ctl.run("put", "a", strings.Repeat("long ", 9)) // 6

		ctl.says(`(?s)REVISION.*\n2 .*PUT +1 .*"first"\n3 .*PUT +2 .*"second"\n5 .*DELETE.*\n6 .*PUT +1 .*45 +"long .*"\.\.\.`, "history", "a")
		ctl.says(`^\d+ older versions are left out by --limit`, "history", "a", "--limit=1")
		ctl.says(`has no version that can be read`, "history", "none")
		ctl.says(`(?s)From revision 3 to 4: 1 added, 0 removed, 0 changed.*added +b/1 `, "diff", "3", "4")
		ctl.says(`(?s)0 added, 1 removed, 0 changed.*removed +a +3`, "diff", "4", "5", "a")
		ctl.says(`(?s)1 added, 0 removed, 1 changed.*changed +a .*"first" +"long `, "diff", first, "now", "--values")
		ctl.says(`(?s)revision 2, which m\d had at .*\na\nfirst\n`, "get", "a", "--at", first)
		ctl.says(`before what the members remember`, "get", "a", "--at", "1000h")
		ctl.says(`is in the future`, "get", "a", "--at", time.Now().Add(time.Hour).Format(time.RFC3339))
		ctl.says(`"x" is no time: give one such as`, "get", "a", "--at", "x")
		ctl.says(`--at and --rev both`, "get", "a", "--at", "1s", "--rev", "2")
		ctl.says(`"a" has the value of revision 3 again, 6 bytes: written at revision 7`, "restore-key", "a", "--rev", "3")
		ctl.says(`"a" is as it was at revision 3: nothing is to be done`, "restore-key", "a", "--rev", "3")
		ctl.says(`would give "a" the value of revision 2, 5 bytes`, "restore-key", "a", "--at", first, "--dry-run")
		ctl.says(`"a" did not exist at revision 5 and is deleted: at revision 8`, "restore-key", "a", "--rev", "5")
		ctl.says(`restore-key command needs --rev or --at`, "restore-key", "a")

		events, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		watch := ctl.command(events, "watch", "a", "--at", first)
		out, err := watch.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		seen := make([]byte, len("PUT\na\nsecond\nDELETE\na\n"))
		for n := 0; n < len(seen); {
			k, err := out.Read(seen[n:])
			if n += k; err != nil {
				t.Fatalf("the watch ended: %v, after %q", err, seen[:n])
			}
		}
		cancel()
		_ = watch.Wait() // it was ended
		if !strings.HasPrefix(string(seen), "PUT\na\nsecond\nDELETE\na") {
			t.Errorf("watched since %s: %q", first, seen)
		}

		ctl.sighting("a", 6) // fast machines are here within the second in which 5 was written
		ctl.run("compaction", "5")
		ctl.says(`Revisions before 5 were compacted`, "history", "a")
		ctl.says(`Hint: revision 2 \(written .*\) was compacted; the oldest that can be read is 5 \(written`, "get", "a", "--at", first)
		ctl.says(`revision 3 .* was compacted; the oldest that can be read is 5`, "diff", "3", "now")
		ctl.says(`revision 3 .* was compacted`, "restore-key", "b/1", "--rev", "3")

		// What is in the file is known after kill -9.
		m := c.Members[0]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for { // it is written every ten seconds
			b, err := os.ReadFile(times)
			if n := len(b); n >= 20 && binary.BigEndian.Uint64(b[n-12:]) >= 8 { // see formats.md
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s has %x: %v", times, b, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.WaitReady(ctx); err != nil {
			t.Fatal(err)
		}
		one := historian{t, []string{m.Endpoint()}}
		// The moment is one when some member had revision 2. This one may have had it a little later.
		one.says(`revision [12]\b.* was compacted`, "get", "a", "--at", first)
	})
	t.Run("etcd", func(t *testing.T) {
		t.Parallel()
		c := startCluster(t, cluster.Config{Kind: cluster.Etcd, Size: 1})
		ctl := historian{t, c.Endpoints()}
		for i := range 5 {
			ctl.run("put", "a", strconv.Itoa(i))
		}
		ctl.says(`(?s)When they were written is not known.*\n2 +not known +PUT +1 .*"0".*\n6 .*PUT +5 .*"4"`, "history", "a")
		ctl.says(`changed +a +2 +6`, "diff", "2", "now")
		ctl.says(`no endpoint knows when which revision was written.*so name a revision`, "get", "a", "--at", "1s")
		ctl.says(`has the value of revision 4 again, 1 byte: written at revision 7`, "restore-key", "a", "--rev", "4")
		ctl.run("compaction", "4")
		ctl.says(`(?s)Revisions before 4 were compacted.*\n4 .*\n5 .*\n6 .*\n7 `, "history", "a")
		ctl.says(`Hint: revision 2 was compacted; the oldest that can be read is 4`, "diff", "2", "now")
		// The same where a revision is named to etcd's own commands.
		ctl.says(`Error: .*has been compacted\nHint: revision 2 was compacted; the oldest that can be read is 4\n`, "get", "a", "--rev", "2")
		ctl.says(`Error: .*is a future revision\nHint: the newest revision is 7\n`, "get", "a", "--rev", "99")
		ctl.says(`Error: .*has been compacted\nHint: revision 3 was compacted; the oldest that can be read is 4\n`, "compaction", "3")
		ctl.says(`Error: .*has been compacted\nHint: revision 2 was compacted; the oldest`, "endpoint", "hashkv", "--rev", "2")
		ctl.says(`has been compacted\)\nHint: the oldest revision that can be watched is 4\n`, "watch", "a", "--rev", "2")
	})
}

// historian runs Belay's own ctl; etcdctl lacks what is tried with it.
type historian struct {
	t         *testing.T
	endpoints []string
}

func (h historian) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, Belay(h.t), append([]string{"ctl", "--command-timeout=20s", "--endpoints", strings.Join(h.endpoints, ",")}, args...)...)
}

func (h historian) run(args ...string) string {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
	defer cancel()
	out, _ := h.command(ctx, args...).CombinedOutput() // some are refused, and say why
	return string(out)
}

// says wants a match somewhere in what a command prints.
func (h historian) says(pattern string, args ...string) {
	h.t.Helper()
	if out := h.run(args...); !regexp.MustCompile(pattern).MatchString(out) {
		h.t.Errorf("ctl %s printed\n%s\nwant a match of\n%s", strings.Join(args, " "), out, pattern)
	}
}

// sighting waits until a member has seen a revision of a key, and returns a time at which it was
// the newest.
func (h historian) sighting(key string, revision int64) string {
	h.t.Helper()
	for start := time.Now(); time.Since(start) < time.Minute; time.Sleep(200 * time.Millisecond) {
		var history struct {
			Versions []struct {
				Revision int64
				Written  *struct{ To time.Time }
			}
		}
		ctx, cancel := context.WithTimeout(h.t.Context(), time.Minute)
		out, err := h.command(ctx, "history", key, "-w", "json").Output()
		cancel()
		if err != nil || json.Unmarshal(out, &history) != nil {
			continue
		}
		for _, v := range history.Versions {
			if v.Revision != revision || v.Written == nil || v.Written.To.IsZero() {
				continue
			}
			at := v.Written.To.Truncate(time.Second).Add(time.Second)
			if time.Now().After(at) {
				return at.Format(time.RFC3339)
			}
		}
	}
	h.t.Fatalf("nobody has seen revision %d", revision)
	return ""
}
