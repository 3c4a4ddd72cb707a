package backup

import (
	"bytes"
	"context"
	"crypto/md5"
	"encoding/base64"
	"encoding/pem"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/minio/minio-go/v7"

	"github.com/belaydb/belay/datadir"
)

// bucket is as much of S3 as a depot uses, in memory.
type bucket struct {
	mu      sync.Mutex
	objects map[string][]byte
	page    int           // how many names an answer of a list has
	refuse  string        // a code that every answer has
	hang    chan struct{} // not nil: answers wait for it
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if b.hang != nil {
		select {
		case <-b.hang:
		case <-r.Context().Done():
		}
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	fail := func(status int, code string) {
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(status)
		fmt.Fprintf(w, `<Error><Code>%s</Code><Message>said by the test</Message><BucketName>bucket</BucketName></Error>`, code)
	}
	if !strings.HasPrefix(r.Header.Get("Authorization"), "AWS4-HMAC-SHA256 Credential=key/") {
		fail(http.StatusForbidden, "AccessDenied")
		return
	}
	if b.refuse != "" {
		fail(http.StatusForbidden, b.refuse)
		return
	}
	name, query := strings.TrimPrefix(r.URL.Path, "/bucket/"), r.URL.Query()
	switch {
	case query.Has("location"):
		fmt.Fprint(w, `<LocationConstraint>r</LocationConstraint>`)
	case r.Method == http.MethodGet && query.Get("list-type") == "2":
		b.list(w, query.Get("prefix"), query.Get("continuation-token"))
	case r.Method == http.MethodGet:
		data, ok := b.objects[name]
		if !ok {
			fail(http.StatusNotFound, "NoSuchKey")
			return
		}
		w.Header().Set("Last-Modified", time.Now().UTC().Format(http.TimeFormat))
		w.Header().Set("ETag", `"x"`)
		_, _ = w.Write(data) // who reads has gone
	case r.Method == http.MethodPut:
		data, err := io.ReadAll(r.Body)
		sum := md5.Sum(data)
		if err != nil || r.Header.Get("Content-Md5") != base64.StdEncoding.EncodeToString(sum[:]) {
			fail(http.StatusBadRequest, "BadDigest")
			return
		}
		b.objects[name] = data
		w.Header().Set("ETag", `"x"`)
	case r.Method == http.MethodDelete:
		delete(b.objects, name)
		w.WriteHeader(http.StatusNoContent)
	default:
		fail(http.StatusNotImplemented, "NotImplemented")
	}
}

func (b *bucket) list(w io.Writer, prefix, after string) {
	var answer struct {
		XMLName               xml.Name `xml:"ListBucketResult"`
		IsTruncated           bool
		NextContinuationToken string
		Contents              []struct {
			Key  string
			Size int
		}
		CommonPrefixes []struct{ Prefix string }
	}
	var names []string
	for key := range b.objects {
		if rest, ok := strings.CutPrefix(key, prefix); ok {
			if i := strings.IndexByte(rest, '/'); i >= 0 {
				key = prefix + rest[:i+1]
			}
			names = append(names, key)
		}
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(s string) bool { return s <= after })
	if len(names) > b.page {
		names = names[:b.page]
		answer.IsTruncated, answer.NextContinuationToken = true, names[b.page-1]
	}
	for _, n := range names {
		if strings.HasSuffix(n, "/") {
			answer.CommonPrefixes = append(answer.CommonPrefixes, struct{ Prefix string }{n})
		} else {
			answer.Contents = append(answer.Contents, struct {
				Key  string
				Size int
			}{n, len(b.objects[n])})
		}
	}
	out, err := xml.Marshal(answer)
	if err == nil {
		_, _ = w.Write(out) // as above
	}
}

// s3 opens a depot at an endpoint, as a flag does.
func s3(t *testing.T, endpoint string) Depot {
	t.Helper()
	d, err := Place{"s3://bucket/of/belay?region=r&endpoint=" + endpoint}.Open("backup-to", nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func setKeys(t *testing.T) {
	t.Helper()
	t.Setenv("AWS_ACCESS_KEY_ID", "key")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "very secret")
	for _, name := range []string{"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_CA_BUNDLE", "AWS_PROFILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(t.TempDir(), "none"))
}

// asDepot tries what Depot promises.
func asDepot(t *testing.T, d Depot) {
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	list := func(folder string) (names []string) {
		t.Helper()
		items, err := d.List(ctx, folder)
		must(err)
		for _, i := range items {
			name := fmt.Sprintf("%s:%d", i.Name, i.Bytes)
			if i.Folder {
				name = i.Name + "/"
			}
			names = append(names, name)
		}
		return names
	}
	read := func(name string) ([]byte, error) {
		f, err := d.Read(ctx, name)
		if err != nil {
			return nil, err
		}
		data, err := io.ReadAll(f)
		return data, errors.Join(err, f.Close())
	}
	if got := list(""); len(got) != 0 {
		t.Fatalf("an empty depot has %v", got)
	}
	if got := list("c/none"); len(got) != 0 {
		t.Fatalf("a folder that does not exist has %v", got)
	}
	if _, err := read("c/none"); !errors.Is(err, iofs.ErrNotExist) {
		t.Fatalf("a file that does not exist: %v", err)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 2<<20/16)
	for i := range 5 {
		must(d.Write(ctx, fmt.Sprintf("c/f%d/part", i), large[:i]))
	}
	must(d.Write(ctx, "c/f0/manifest", large))
	must(d.Write(ctx, "c/f0/manifest", []byte("again")))
	must(d.Write(ctx, "c/f1/large", large))
	must(d.Write(ctx, "cc/x", nil))
	for folder, want := range map[string]string{"": "c/ cc/", "c": "f0/ f1/ f2/ f3/ f4/", "c/f0": "manifest:5 part:0", "c/f1": "large:2097152 part:1", "cc": "x:0"} {
		if got := strings.Join(list(folder), " "); got != want {
			t.Errorf("%q has %s, want %s", folder, got, want)
		}
	}
	if got, err := read("c/f1/large"); err != nil || !bytes.Equal(got, large) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	if got, err := read("c/f0/manifest"); err != nil || string(got) != "again" {
		t.Errorf("%q, %v", got, err)
	}
	must(d.Remove(ctx, "c/f1/part"))
	must(d.Remove(ctx, "c/f1/part"))
	must(d.RemoveFolder(ctx, "c/f0"))
	if got := strings.Join(list("c"), " "); got != "f1/ f2/ f3/ f4/" {
		t.Errorf("left: %s", got)
	}
	must(d.RemoveFolder(ctx, "c"))
	must(d.Remove(ctx, "cc/x"))
}

// savedAndProved makes a full backup and an increment in a depot, proves and restores both, and
// removes them.
func savedAndProved(t *testing.T, d Depot) {
	m := newMember(t)
	m.some(30)
	full := m.save(d, nil, 0, true)
	m.some(25)
	inc := m.save(d, full, 10, true)
	c := load(t, d)
	for _, e := range c.Entries {
		mustProve(t, d, c, e)
	}
	c = load(t, d)
	if got := states(c); got != "good;good;" {
		t.Fatal(got)
	}
	for _, rev := range []int64{full.Manifest.Revision, inc.Manifest.Revision - 3} {
		p, err := c.Plan(Target{Revision: rev})
		if err != nil {
			t.Fatal(err)
		}
		if r := restorePlan(t, d, p); r.revision != rev || r.hash != m.hash(rev) {
			t.Errorf("revision %d: %+v, want the hash %d", rev, r, m.hash(rev))
		}
	}
	for _, e := range c.Entries {
		if err := remove(t.Context(), d, c.Cluster, e); err != nil {
			t.Fatal(err)
		}
	}
	if c = load(t, d); len(c.Entries) != 0 {
		t.Errorf("%d backups are left", len(c.Entries))
	}
}

func TestDirDepot(t *testing.T) {
	t.Parallel()
	asDepot(t, Dir(datadir.FS(), filepath.Join(t.TempDir(), "depot")))
}

// TestS3Depot: a bucket is a depot as a directory is, also when it lists a name at a time.
func TestS3Depot(t *testing.T) {
	setKeys(t)
	b := &bucket{objects: map[string][]byte{"of/belay/": nil, "of/belayed": nil}, page: 1}
	server := httptest.NewTLSServer(b)
	defer server.Close()
	trusted := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(trusted, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("AWS_CA_BUNDLE", trusted)
	d := s3(t, server.URL)
	if got := d.String(); got != "s3://bucket/of/belay" {
		t.Errorf("it is called %s", got)
	}
	asDepot(t, d)
	savedAndProved(t, d)
	b.mu.Lock()
	for name := range b.objects {
		if !strings.HasPrefix(name, "of/belay/") && name != "of/belayed" {
			t.Errorf("%s is not below the prefix", name)
		}
	}
	b.refuse = "AccessDenied"
	b.mu.Unlock()
	for what, err := range map[string]error{
		"write x": d.Write(t.Context(), "x", nil), "remove x": d.Remove(t.Context(), "x"),
		"list x": func() error { _, err := d.List(t.Context(), "x"); return err }(),
		"read x": func() error { _, err := d.Read(t.Context(), "x"); return err }(),
	} {
		for _, part := range []string{"s3://bucket/of/belay: " + what, "said by the test", "AccessDenied"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want %q in it", what, err, part)
			}
		}
		if err != nil && strings.Contains(err.Error(), "secret") {
			t.Errorf("%v tells the key", err)
		}
	}
}

// TestS3Hangs: a store that does not answer is left when the caller wants to.
func TestS3Hangs(t *testing.T) {
	setKeys(t)
	b := &bucket{hang: make(chan struct{})}
	server := httptest.NewServer(b)
	defer server.Close()
	defer close(b.hang)
	d := s3(t, server.URL)
	for what, ask := range map[string]func(ctx context.Context) error{
		"list":   func(ctx context.Context) error { _, err := d.List(ctx, "x"); return err },
		"read":   func(ctx context.Context) error { _, err := d.Read(ctx, "x"); return err },
		"write":  func(ctx context.Context) error { return d.Write(ctx, "x", []byte("x")) },
		"remove": func(ctx context.Context) error { return d.Remove(ctx, "x") },
	} {
		ctx, cancel := context.WithCancelCause(t.Context())
		enough := errors.New("enough")
		time.AfterFunc(20*time.Millisecond, func() { cancel(enough) })
		if err := ask(ctx); !errors.Is(err, enough) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestS3Places: each wrong URL is refused by a text that says what is wrong.
func TestS3Places(t *testing.T) {
	setKeys(t)
	for to, says := range map[string]string{
		"s3://":                             "must name a bucket",
		"s3:///prefix":                      "must name a bucket",
		"s3://key:secret@bucket/p":          "AWS_ACCESS_KEY_ID",
		"s3://bucket/p?host=x":              `"host" is not known`,
		"s3://bucket/p?endpoint=minio:9000": "must be like https://HOST:PORT",
		"s3://bucket/p?endpoint=http://x/y": "must be like https://HOST:PORT",
		"s3://b/p":                          "Bucket name cannot be shorter",
		"gs://b/p":                          "s3://BUCKET/PREFIX",
		"s3://bucket/p#x":                   "no meaning",
	} {
		err := Place{to}.Check("backup-to")
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "--backup-to") {
			t.Errorf("%s: %v, want %q in it", to, err, says)
		}
		if err != nil && strings.Contains(err.Error(), "secret@") {
			t.Errorf("%v tells the key", err)
		}
	}
	t.Setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
	if d, err := (Place{"s3://bucket"}).Open("from", nil); err != nil || d.String() != "s3://bucket" {
		t.Errorf("%v, %v", d, err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	if _, err := (Place{"s3://bucket"}).Open("from", nil); err == nil || !strings.Contains(err.Error(), "there are no keys for 127.0.0.1:1") {
		t.Errorf("without keys: %v", err)
	}
}

// TestRealS3 is TestS3Depot on a server that others wrote, versitygw: `make s3` builds it.
func TestRealS3(t *testing.T) {
	program := os.Getenv("BELAY_S3_SERVER")
	if program == "" {
		t.Skip("needs a server: make s3")
	}
	setKeys(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	server := exec.Command(program, "--access", "key", "--secret", "very secret", "--region", "r", "--port", address, "posix", t.TempDir())
	server.Stdout, server.Stderr = &said, &said
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := server.Process.Kill(); err != nil {
			t.Error(err)
		}
		_ = server.Wait() // killed
		if t.Failed() {
			t.Log(said.String())
		}
	}()
	d := s3(t, "http://"+address)
	deadline := time.Now().Add(time.Minute)
	for {
		err := d.(*s3Depot).core.MakeBucket(t.Context(), "bucket", minio.MakeBucketOptions{Region: "r"})
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	asDepot(t, d)
	savedAndProved(t, d)
	if err := s3(t, "http://"+address+"&region=r").Write(t.Context(), "x", nil); err != nil {
		t.Error(err)
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "another")
	if err := s3(t, "http://"+address).Write(t.Context(), "x", nil); err == nil || !strings.Contains(err.Error(), "SignatureDoesNotMatch") {
		t.Errorf("with a wrong key: %v", err)
	}
}
