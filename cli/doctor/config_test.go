package doctor

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	configure "github.com/belaydb/belay/cli/doctor/config"
	"github.com/belaydb/belay/cli/doctor/disk"
	"github.com/belaydb/belay/cli/doctor/report"
	server "github.com/belaydb/belay/config"
)

func TestConfig(t *testing.T) {
	members := []string{"config", "--members", "m1=127.0.0.1", "--name", "m1", "--data-dir", "/var/lib/x"}
	for _, form := range []string{"yaml", "systemd", "env", "kubeadm"} {
		code, text, err := run(append(members, "-o", form)...)
		if code != 0 {
			t.Fatalf("%s: code %d, %s", form, code, err)
		}
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if code, out, err := run("config", "--check", file); code != report.CodeGood {
			t.Errorf("%s does not pass its own check: code %d\n%s%s\n%s", form, code, out, err, text)
		}
	}
	// A server takes what is printed for it, by file and by variables.
	for _, form := range []string{"yaml", "env"} {
		_, text, _ := run(append(members, "-o", form, "--for", "belay")...)
		o := server.Options{Program: server.Belay, Stdout: io.Discard, Stderr: io.Discard, LogWriter: io.Discard}
		if form == "yaml" {
			file := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			o.Args = []string{"--config-file", file}
		} else {
			o.Environ = strings.Split(text, "\n")
		}
		cfg, logger, code, ok := server.Load(o)
		if !ok {
			t.Fatalf("%s: the server ends with code %d\n%s", form, code, text)
		}
		if err := logger.Close(); err != nil {
			t.Error(err)
		}
		if cfg.Name != "m1" || cfg.DataDir != "/var/lib/x" || cfg.CompactionRetention != "1h" || cfg.QuotaBytes != 8<<30 || cfg.InitialCluster != "m1=http://127.0.0.1:2380" {
			t.Errorf("%s is taken as %+v", form, cfg)
		}
	}
	var r report.Report
	if code, out, _ := run(append(members, "-o", "json", "--for", "belay")...); code != 0 || json.Unmarshal([]byte(out), &r) != nil || len(r.Tables) != 1 {
		t.Errorf("json: code %d\n%s", code, out)
	}
	// What is measured is of this machine; a port where nobody listens refuses, which takes a round
	// trip, too.
	dir := t.TempDir()
	code, out, err := run("config", "--members", "m1=127.0.0.1,m2=127.0.0.2,m3=127.0.0.3", "--data-dir", dir, "--measure", "-o", "yaml")
	if code != 0 || !strings.Contains(out, "fdatasync p99") || !strings.Contains(out, "to 127.0.0.") {
		t.Errorf("measured: code %d\n%s%s", code, out, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("it left %v behind, %v", left, err)
	}
	for _, args := range [][]string{
		{"-o", "toml"}, {"--for", "consul"}, {"--members", "a=1,b=2"}, {"--members", "a"}, {"--name", "m9"}, {"--members", "a=10.0.0.1"}, {"--check", "/dev/null", "-o", "yaml"}, {"-o", "kubeadm", "--for", "belay"}, {"surplus"},
	} {
		if code, out, _ := run(append([]string{"config"}, args...)...); code != report.CodeUsage || out != "" {
			t.Errorf("%v: code %d\n%s", args, code, out)
		}
	}
	if code, _, err := run("config", "--check", "/nothing"); code != report.CodeUnknown || !strings.Contains(err, "/nothing") {
		t.Errorf("a file that is not there: code %d, %s", code, err)
	}
}

// A plan beside a slow disk says so as `doctor disk` does, and ends with 1.
func TestPlanOnASlowDisk(t *testing.T) {
	o := configure.Options{For: configure.ForBelay, Self: "m1", Members: []configure.Member{{Name: "m1", Host: "127.0.0.1"}}, DataDir: "/var/lib/belay"}
	for p99, want := range map[float64]int{0.4: report.CodeWarning, 0.002: report.CodeGood} {
		r := planned(o, configure.Measured{}, faultsOf(&disk.Result{Writes: 500, IOPS: 900, P99: p99}))
		if got := r.ExitCode(); got != want {
			t.Errorf("fsync p99 of %v s: exit code %d, want %d", p99, got, want)
		}
	}
}
