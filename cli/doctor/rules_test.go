package doctor

import (
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/belaydb/belay/cli/doctor/report"
)

// TestRules has the command lines of doctor rules and doctor dashboard.
func TestRules(t *testing.T) {
	for _, kind := range []string{"etcd", "belay"} {
		code, text, stderr := run("rules", "--for", kind, "--selector", `{job="a", cluster=~"b|c"}`, "--by", "job,cluster", "--runbook", "http://wiki/x")
		var file struct {
			Groups []struct {
				Rules []struct {
					Alert, Expr string
					Annotations map[string]string
				}
			}
		}
		if err := yaml.Unmarshal([]byte(text), &file); code != 0 || err != nil || stderr != "" || len(file.Groups) < 5 {
			t.Fatalf("code %d, %v: %s%s", code, err, text, stderr)
		}
		if !strings.Contains(text, `up{job="a", cluster=~"b|c"}`) || !strings.Contains(text, "sum by (job, cluster)") || !strings.Contains(text, "http://wiki/x#noleader") {
			t.Errorf("%s", text)
		}
		code, asJSON, _ := run("rules", "--for", kind, "-o", "json", "--selector", `job="a"`)
		if code != 0 || !json.Valid([]byte(asJSON)) || !strings.Contains(asJSON, `up{job=\"a\"}`) {
			t.Errorf("code %d: %s", code, asJSON)
		}
		code, board, stderr := run("dashboard", "--for", kind, "--selector", `job="a"`, "--refresh", "10s")
		if code != 0 || !json.Valid([]byte(board)) || !strings.Contains(board, `"refresh": "10s"`) || !strings.Contains(board, `{job=\"a\"}`) {
			t.Errorf("code %d: %s%.500s", code, stderr, board)
		}
	}
	// Timers that are far apart make other bounds.
	if _, text, _ := run("rules", "--for", "etcd", "--heartbeat-interval", "500ms", "--election-timeout", "5s"); !strings.Contains(text, "> 1.25\n") || !strings.Contains(text, "election timeout 5s") {
		t.Error(text)
	}

	for _, args := range [][]string{
		{"rules", "--for", "zookeeper"}, {"rules", "x"}, {"rules", "--selector", "job=etcd"}, {"rules", "--selector", `job="a"} or vector(1) #`},
		{"rules", "--by", "a b"}, {"rules", "--html", "x.html"}, {"rules", "--election-timeout", "0s"}, {"rules", "--heartbeat-interval", "2s"}, {"rules", "--between", "-1s"},
		{"dashboard", "--for", "x"}, {"dashboard", "--refresh", "1ms"}, {"dashboard", "--html", "x.html"},
	} {
		if code, out, stderr := run(args...); code != report.CodeUsage || out != "" || !strings.HasPrefix(stderr, "Error: ") {
			t.Errorf("%v: code %d, %s%s", args, code, out, stderr)
		}
	}
	// Bounds of a cluster that does not answer are not guessed.
	if code, out, stderr := run("rules", "--tune", "--endpoints", nobody(t), "--command-timeout", "1s"); code != report.CodeUnknown || out != "" || !strings.Contains(stderr, "answers with its metrics") {
		t.Errorf("code %d: %s%s", code, out, stderr)
	}
}
