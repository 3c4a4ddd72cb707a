package check

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// verified is what `belay util verify` says of a data directory.
type verified struct {
	Kind     string
	Revision int64
	Hash     uint32
	Accounts int
	Notes    []string
	Findings []struct{ File, Reason string }
}

func verifyData(t *testing.T, dir string) (v verified, code int, text string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Belay(t), "util", "verify", "-w", "json", "--data-dir", dir)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if len(out) > 0 {
		if err := json.Unmarshal(out, &v); err != nil {
			t.Fatalf("verify prints %q: %v", out, err)
		}
	}
	return v, code, string(out) + stderr.String()
}

// copyOf is a copy of a data directory.
func copyOf(t *testing.T, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	return to
}

// TestVerifyAndDefrag: `belay util verify` finds nothing in whole data of either kind and names what
// is damaged; defrag leaves the data what it was; etcdutl's migrate does what etcdutl's own does.
func TestVerifyAndDefrag(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	accounts := 0 // of the same users and roles
	for _, kind := range []cluster.Kind{cluster.Etcd, cluster.Belay} {
		source := startCluster(t, cluster.Config{Kind: kind, Size: 1, Args: []string{"--bcrypt-cost=4", "--snapshot-count=100"}}).Members[0]
		fillForRestore(t, ctx, source.Endpoint())
		if _, code, text := verifyData(t, source.DataDir); code != 1 || !strings.Contains(text, "stop") {
			t.Errorf("%s: verify beside a member that runs: code %d\n%s", kind, code, text)
		}
		if err := source.Stop(ctx); err != nil && source.ExitErr() == nil {
			t.Fatal(err)
		}
		locked := regexp.MustCompile(`(?m)^.*/LOCK\d.*$`) // taken, so written anew
		before := locked.ReplaceAllString(filesOf(t, source.DataDir), "")
		whole, code, text := verifyData(t, source.DataDir)
		if code != 0 || whole.Kind != string(kind) || whole.Revision < 100 || whole.Hash == 0 {
			t.Errorf("%s: verify of whole data: code %d\n%s", kind, code, text)
		}
		if accounts == 0 {
			accounts = whole.Accounts
		}
		if len(whole.Notes) > 0 || accounts == 0 || whole.Accounts != accounts {
			t.Errorf("%s: %d users and roles of %d, and %q", kind, whole.Accounts, accounts, whole.Notes)
		}
		if locked.ReplaceAllString(filesOf(t, source.DataDir), "") != before {
			t.Errorf("%s: verify changed files:\n%s\nwere\n%s", kind, locked.ReplaceAllString(filesOf(t, source.DataDir), ""), before)
		}

		dir := copyOf(t, source.DataDir)
		if out, err := exec.CommandContext(ctx, Belay(t), "util", "defrag", "--data-dir", dir).CombinedOutput(); err != nil {
			t.Errorf("%s: defrag: %v\n%s", kind, err, out)
		}
		if v, code, text := verifyData(t, dir); code != 0 || v.Hash != whole.Hash || v.Revision != whole.Revision {
			t.Errorf("%s: verify after defrag: code %d\n%s\nbefore: %+v", kind, code, text, whole)
		}
		saysAsEtcdutl(t, ctx, "finished defragmenting directory", "defrag", "--data-dir", dir)
		if kind == cluster.Etcd {
			saysAsEtcdutl(t, ctx, "added member", "snapshot", "restore", filepath.Join(dir, "member", "snap", "db"), "--skip-hash-check", "--data-dir", t.TempDir())
		}
		if left, err := filepath.Glob(filepath.Join(dir, "member", "*", "db.tmp*")); err != nil || len(left) > 0 {
			t.Error(left, err)
		}
		if kind == cluster.Etcd {
			schemaLikeEtcdutl(t, ctx, dir)
		}

		parts := map[cluster.Kind][]string{
			cluster.Belay: {"store/*.sst", "store/MANIFEST-*", "log/segment-*", "log/META", "identity.json", "store/identity.json", "store/marker.manifest.*", "store/segments/*.log"},
			cluster.Etcd:  {"snap/db", "wal/*.wal"},
		}[kind]
		for _, part := range parts {
			files, err := filepath.Glob(filepath.Join(source.DataDir, "member", part))
			if err != nil || len(files) == 0 {
				t.Fatalf("%s: no file %s: %v", kind, part, err)
			}
			name, _ := filepath.Rel(source.DataDir, files[len(files)-1]) // of the log the last segment: it may have let go of the first
			hows := []string{"flipped", "gone"}
			if strings.HasPrefix(part, "store/marker") {
				hows = hows[1:] // it is empty
			}
			if part == "snap/db" {
				hows = append(hows, "cut") // a page behind the end of a mapped file
			}
			for _, how := range hows {
				dir := copyOf(t, source.DataDir)
				damage(t, filepath.Join(dir, name), how)
				if kind == cluster.Etcd && part == "snap/db" { // a fault of bbolt's would be another exit code
					out, err := exec.CommandContext(ctx, Belay(t), "util", "defrag", "--data-dir", dir).CombinedOutput()
					if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 1 {
						t.Errorf("defrag of %s %s: %v\n%s", name, how, err, out)
					}
				}
				if v, code, text := verifyData(t, dir); code != 1 || len(v.Findings) == 0 && (kind == cluster.Belay || !strings.Contains(text, "holds no data")) {
					t.Errorf("%s: %s %s: code %d\n%s", kind, name, how, code, text)
				}
			}
		}
	}
}

// damage flips a bit of every page of the first half of a file, cuts the file there, or removes it.
func damage(t *testing.T, path, how string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	switch how {
	case "flipped":
		used := len(strings.TrimRight(string(data), "\x00"))
		for i := min(20, used/2); i <= used/2; i += 4096 {
			data[i] ^= 1
		}
	case "cut":
		data = data[:len(strings.TrimRight(string(data), "\x00"))/2]
	default:
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		return
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// saysAsEtcdutl: by the name etcdutl a command logs that on standard error, and prints nothing.
func saysAsEtcdutl(t *testing.T, ctx context.Context, message string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, Belay(t), args...)
	cmd.Args[0] = "etcdutl"
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil || stdout.Len() > 0 || !strings.Contains(stderr.String(), "\tinfo\t"+message+"\t{\"") {
		t.Errorf("etcdutl %v: %v, %q\n%s", args, err, stdout.String(), stderr.String())
	}
}

// schemaWords are the lines that etcdutl logs of a migration, without the time and the place.
var schemaWords = regexp.MustCompile(`(?m)\t(info|warn)\t(?:\S+\.go:\d+\t)?((?:storage version up-to-date|updated storage version|normal migrate failed|forcefully).*)$`)

// schemaLikeEtcdutl takes the same steps with `etcdutl migrate` of both kinds.
func schemaLikeEtcdutl(t *testing.T, ctx context.Context, dir string) {
	tools := EtcdTools(t)
	ours := filepath.Join(t.TempDir(), "etcdutl")
	if err := os.Symlink(Belay(t), ours); err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{ours: dir, tools.Etcdutl: copyOf(t, dir)}
	for _, args := range []string{
		"--target-version=3.7", "--target-version=3.6", "--target-version=3.5", "--target-version=3.5", "--target-version=3.7",
		"--target-version=3.8", "--target-version=3.9", "--target-version=4.0", "--target-version=2.9", "--target-version=3.4", "--target-version=x", "--target-version=3.5.1", "", "--target-version=3.8 --force", "--target-version=3.6",
	} {
		var said []string
		for _, program := range []string{ours, tools.Etcdutl} {
			cmd := exec.CommandContext(ctx, program, append([]string{"migrate", "--data-dir", dirs[program]}, strings.Fields(args)...)...)
			out, err := cmd.CombinedOutput()
			message := ""
			for line := range strings.Lines(string(out)) {
				if strings.HasPrefix(line, "Error: ") && message == "" {
					message = line
				}
			}
			status, _ := exec.CommandContext(ctx, tools.Etcdutl, "snapshot", "status", filepath.Join(dirs[program], "member", "snap", "db")).CombinedOutput()
			fields := strings.Split(strings.TrimSpace(string(status)), ", ")
			for _, line := range schemaWords.FindAllStringSubmatch(string(out), -1) {
				message += line[1] + " " + line[2] + "\n"
			}
			said = append(said, fmt.Sprintf("%v %sversion %s", err, message, fields[len(fields)-1]))
		}
		if said[0] != said[1] {
			t.Errorf("migrate %s:\nbelay   %s\netcdutl %s", args, said[0], said[1])
		}
	}
}
