package node

import (
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/zap"

	"github.com/belaydb/belay/listen"
)

// What cannot be used of certificates is told with flag and file: the errors of crypto/tls name neither.
func TestUnusableCertificate(t *testing.T) {
	text := filepath.Join(t.TempDir(), "notes.txt")
	if err := os.WriteFile(text, []byte("no certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := &Node{logger: zap.NewNop()}
	for _, tc := range []struct {
		of    side
		file  string
		wants []string
	}{
		{forClients(), text, []string{"--cert-file=" + text, "--key-file=" + text, "PEM"}},
		{forPeers(), text, []string{"--peer-cert-file=" + text, "PEM"}},
		{forPeers(), text + ".missing", []string{"--peer-key-file=" + text + ".missing", "no such file"}},
	} {
		_, err := n.security(tc.of, listen.TLSInfo{CertFile: tc.file, KeyFile: tc.file}, false, []url.URL{}, listen.SecurityOptions{})
		for _, want := range tc.wants {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v\nwant %q in it", err, want)
			}
		}
	}
}
