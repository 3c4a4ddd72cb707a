package surface

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// notMessages are the first words of what a page cites that is not a message: commands, queries,
// requests.
var notMessages = regexp.MustCompile(`^(?:BELAY_\w+=\S+ |ETCDCTL_\w+=\S+ |\./)?(?:belay|bin/belay|etcd|etcdctl|etcdutl|go|make|curl|ctl|doctor|util|GET|POST|sudo|systemctl|journalctl|kubectl|apt-get|fio|grep|ss|openssl|count|sum|topk|rate|histogram_quantile|pause|disk|link|kill|stop|package:|--?\w)\b|^-|\||^[A-Z]+ /`)

// othersMessages are parts of messages that a page cites and that Go's standard library, raft and
// etcd's packages write.
var othersMessages = []string{
	"tls: client didn't provide a certificate",
	"remote error: tls: bad certificate",
	"unknown certificate authority",
	"x509: certificate signed by unknown authority",
	"client certificate authentication failed",
	"revision of auth store is old",
	"tls: first record does not look like a TLS handshake",
	"is out of range [lastIndex(",
}

// varies is what stands in a citation for something that differs from message to message, or in a
// literal for what is put in.
var varies = regexp.MustCompile(`\.\.\.|--[\w-]+|%[-+#0-9.*]*[a-zA-Z]|"[^"]*"|\b[A-Z]+\b(?:/\S*)?|\b\w*[0-9]\w*\b|…`)

// citations are the code spans of four words and more of a page, outside code blocks, that may be
// messages.
func citations(page string) []string {
	page = regexp.MustCompile("(?ms)^```.*?^```").ReplaceAllString(page, "")
	page = regexp.MustCompile(`(?m)^    .*$`).ReplaceAllString(page, "")
	var found []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(page, -1) {
		words := strings.Fields(m[1])
		if text := strings.Join(words, " "); len(words) >= 4 && !notMessages.MatchString(text) {
			found = append(found, text)
		}
	}
	return found
}

// pieces are the parts of a message between what varies, of at least two words; the whole message
// if nothing varies.
func pieces(message string) []string {
	var parts []string
	for _, part := range varies.Split(message, -1) {
		if part = strings.Trim(part, " ,;:()=[]'"); len(strings.Fields(part)) >= 2 {
			parts = append(parts, part)
		}
	}
	return parts
}

// literals are all string literals of the module's own code, each with spaces as a page has them.
func literals(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for text := range readSourceBut(t).texts {
		all.WriteString(strings.Join(strings.Fields(text), " "))
		all.WriteByte('\n')
	}
	return all.String()
}

// TestCitedMessages looks each message that a page cites up in the code: its parts between what
// varies. The messages of compatibility.md's section 7.2 have a test of their own, which also knows
// those that are said not to be there.
func TestCitedMessages(t *testing.T) {
	t.Parallel()
	code := literals(t)
	pages, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	pages = append(pages, "../../README.md", "../../ARCHITECTURE.md", "../../SECURITY.md")
	cited := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		if filepath.Base(page) == "compatibility.md" {
			continue
		}
		for _, message := range citations(string(text)) {
			cited++
			for _, piece := range uncited(code, message) {
				t.Errorf("%s: `%s`: %q is not in the code", filepath.Base(page), message, piece)
			}
		}
	}
	if cited < 100 {
		t.Errorf("%d messages found on %d pages", cited, len(pages))
	}
}

// uncited are the pieces of a message that the code does not have.
func uncited(code, message string) []string {
	for _, other := range othersMessages {
		if strings.Contains(message, other) {
			return nil
		}
	}
	var missing []string
	for _, piece := range pieces(message) {
		if !strings.Contains(code, piece) {
			missing = append(missing, piece)
		}
	}
	return missing
}

// TestCitedMessagesCanFail shows what the test finds and what it leaves alone.
func TestCitedMessagesCanFail(t *testing.T) {
	code := "the store in %s belongs to member %x of cluster %x\nanother line\n"
	page := "Say `the store in DIR belongs to member 5a of cluster 7` or `the store in DIR is owned by member 5a`;\nrun `belay ctl get some key`.\n\n```\nfenced text of many words\n```\n"
	var missing []string
	for _, message := range citations(page) {
		missing = append(missing, uncited(code, message)...)
	}
	if len(missing) != 1 || missing[0] != "is owned by member" {
		t.Fatalf("missing: %q", missing)
	}
}
