package doctor

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/belaydb/belay/cli/doctor/report"
)

func run(args ...string) (code int, stdout, stderr string) {
	var out, err bytes.Buffer
	code = Main(args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// nobody is an address at which nothing listens.
func nobody(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestCommandLine(t *testing.T) {
	for _, args := range [][]string{{"--nothing"}, {"nothing"}, {"-o", "xml"}, {"--between=-1s"}, {"--cert="}, {"--endpoints", "x:1", "surplus"}} {
		if code, out, err := run(args...); code != report.CodeUsage || out != "" || !strings.HasPrefix(err, "Error: ") {
			t.Errorf("%v: code %d, %q, %q", args, code, out, err)
		}
	}
	if code, out, _ := run("--help"); code != 0 || !strings.Contains(out, "belay doctor") {
		t.Errorf("--help: code %d, %q", code, out)
	}
}

// TestNobodyAnswers has all three forms, of a cluster that is not there.
func TestNobodyAnswers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.html")
	at := nobody(t)
	code, out, err := run("--endpoints", at, "--command-timeout", "1s", "-o", "json", "--html", file)
	var r report.Report
	if code != report.CodeCritical || json.Unmarshal([]byte(out), &r) != nil || len(r.Findings) != 1 || r.Findings[0].ID != "nobody-answers" {
		t.Errorf("code %d: %s%s", code, out, err)
	}
	page, readErr := os.ReadFile(file)
	if readErr != nil || !bytes.Contains(page, []byte("No endpoint answers.")) || bytes.Contains(page, []byte("src=")) || bytes.Contains(page, []byte("href=")) {
		t.Errorf("the page: %v\n%s", readErr, page)
	}
	if code, out, _ := run("--endpoints", at, "--command-timeout", "1s"); code != report.CodeCritical || !strings.Contains(out, "CRITICAL  No endpoint answers.") {
		t.Errorf("code %d: %s", code, out)
	}
}
