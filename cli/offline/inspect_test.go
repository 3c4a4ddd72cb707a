package offline

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/embed"
)

// look runs an inspector and returns its lines and its exit code.
func look(t *testing.T, args ...string) (lines []map[string]any, code int) {
	t.Helper()
	var out, errs bytes.Buffer
	code = Main("belay util", append([]string{"inspect", "-o", "json"}, args...), &out, &errs)
	for line := range strings.Lines(out.String()) {
		var v map[string]any
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%v prints %q: %v", args, line, err)
		}
		lines = append(lines, v)
	}
	return lines, code
}

func kinds(lines []map[string]any) map[string]int {
	n := map[string]int{}
	for _, l := range lines {
		kind, _ := l["kind"].(string)
		n[kind]++
	}
	return n
}

// TestEveryFileIsKnown: of every file that a member writes, while it runs and after it has stopped,
// `inspect files` says what it is, and the inspector that it names reads it; likewise of backups.
func TestEveryFileIsKnown(t *testing.T) {
	t.Parallel()
	dir, wal, depot := t.TempDir(), t.TempDir(), t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	m, err := embed.Start(ctx, embed.Options{Name: "m", Dir: dir, Flags: []string{"--wal-dir=" + wal, "--backup-to=" + depot, "--backup-increment-interval=1s"}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Stop()
	client, err := m.Client()
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for i := range 20 {
		if _, err := client.Put(ctx, fmt.Sprint("key", i), "value"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := client.Grant(ctx, 600); err != nil {
		t.Fatal(err)
	}
	all := func() {
		t.Helper()
		files, code := look(t, "files", dir, "--wal-dir", wal)
		if code != 0 || len(files) < 10 {
			t.Errorf("%d files, code %d", len(files), code)
		}
		for _, f := range files {
			name, inspector := f["file"].(string), f["inspector"]
			if f["kind"] != "file" {
				t.Errorf("nobody knows %s", name)
			}
			if inspector == nothing {
				continue
			}
			if _, code := look(t, fmt.Sprint(inspector), dir, "--wal-dir", wal); code != 0 {
				t.Errorf("inspect %v of %s: code %d", inspector, name, code)
			}
		}
	}
	all()

	// The first backup may be of nothing; the next has what was written.
	deadline := time.Now().Add(2 * time.Minute)
	for {
		found, code := look(t, "backup", "--from", depot, "--records")
		n := kinds(found)
		if n["unknown"]+n["damage"] > 0 || code != 0 {
			t.Fatalf("of whole backups: code %d, %v", code, found)
		}
		if n["version"] >= 20 && n["proof"] > 0 && n["lease"] > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing was backed up within two minutes: %v", n)
		}
		time.Sleep(50 * time.Millisecond)
	}
	all()
	m.Stop()
	all()
	for part, least := range map[string]int{"times": 1, "log": 20, "store": 20, "identity": 3} {
		if lines, code := look(t, part, dir, "--wal-dir", wal); code != 0 || len(lines) < least {
			t.Errorf("inspect %s after a stop: %d lines, code %d", part, len(lines), code)
		}
	}

	// What is damaged is a line, and the rest is printed.
	parts, err := filepath.Glob(filepath.Join(depot, "*", "*", "*.part"))
	if err != nil || len(parts) == 0 {
		t.Fatal(parts, err)
	}
	flip(t, parts[0])
	flip(t, filepath.Join(dir, "member", "times"))
	for _, args := range [][]string{{"backup", "--from", depot}, {"times", dir}} {
		found, code := look(t, args...)
		if n := kinds(found); code != 1 || n["damage"] != 1 || args[0] == "backup" && n["part"] == 0 {
			t.Errorf("inspect %v of a damaged file: code %d, %v", args, code, found)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "member", "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if files, code := look(t, "files", dir); code != 0 || kinds(files)["unknown"] != 1 {
		t.Errorf("a file of nobody: code %d, %v", code, kinds(files))
	}
}

// flip changes the last byte of a file.
func flip(t *testing.T, name string) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil && len(b) > 0 {
		b[len(b)-1] ^= 1
		err = os.WriteFile(name, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilesAreDocumented: docs/formats.md names every file that the list has, and every inspector
// that the list names is one.
func TestFilesAreDocumented(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "formats.md"))
	if err != nil {
		t.Fatal(err)
	}
	var parts []string
	var out bytes.Buffer
	for _, c := range inspectCommand(&out).Commands() {
		parts = append(parts, c.Name())
	}
	for _, k := range slices.Concat(memberFiles(), rootFiles()) {
		name, _, _ := strings.Cut(strings.TrimSuffix(k.pattern, "/..."), "[")
		if stem, rest, ok := strings.Cut(path.Base(name), "*"); ok {
			if name = stem; stem == "" {
				name = rest
			}
		} else {
			name = path.Base(name)
		}
		if !bytes.Contains(page, []byte(name)) {
			t.Errorf("docs/formats.md does not name %s (%s)", k.pattern, name)
		}
		if k.inspector != nothing && k.inspector != byEtcd && !slices.Contains(parts, k.inspector) {
			t.Errorf("%s is for an inspector %q, which is none of %v", k.pattern, k.inspector, parts)
		}
	}
}

func TestKindOf(t *testing.T) {
	for name, want := range map[string]string{
		"member/identity.json": "identity", "member/identity.json.tmp": nothing, "member/log/META": "log", "member/log.new/META": nothing,
		"member/store/incoming/1/000001.sst": nothing, "damaged-20260101T000000.000Z/store/000001.sst": "store", "healing.json": "healing",
		"member.etcd/snap/db": byEtcd, "fixtures/peer/cert.pem": asText, "member/store/notes": "", "log/META": "", "other": "", "member": "",
	} {
		if k, ok := kindOf(name, false); ok != (want != "") || k.inspector != want {
			t.Errorf("%s is for %q (%v), want %q", name, k.inspector, ok, want)
		}
	}
	for name, want := range map[string]string{"log/META": "log", "log.new/segment-0000000000000001.log": nothing, "damaged-1/META": "log", "log/other": ""} {
		if k, ok := kindOf(name, true); ok != (want != "") || k.inspector != want {
			t.Errorf("in --wal-dir %s is for %q (%v), want %q", name, k.inspector, ok, want)
		}
	}
}
