package backup

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	iofs "io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/s3utils"
)

const (
	s3Scheme = "s3://"
	// s3Amazon is the endpoint if none is given.
	s3Amazon = "https://s3.amazonaws.com"
	// s3Patience is how long the store may take to answer, or to send or take the next bytes.
	s3Patience = time.Minute
	// s3SlowestBytes is how many bytes of an object it must take in a second on top of that.
	s3SlowestBytes = 64 << 10
	// s3Tries is how often a request is made that fails in a way that may pass.
	s3Tries = 5
)

// s3Depot is a Depot in a bucket of Amazon S3, or of a store that speaks as S3 does. An object is
// there as a whole or not at all, and durable when the store has confirmed it; what it lists holds
// what was confirmed before. A folder is what the names of objects have in common.
type s3Depot struct {
	core   minio.Core
	bucket string
	prefix string // of every name, without slashes at its ends; may be empty
}

// s3Place is what an s3:// URL and the environment say.
type s3Place struct {
	bucket, prefix string
	endpoint       *url.URL
	region         string
	amazon         bool // the endpoint was not given
}

func isS3(to string) bool { return strings.HasPrefix(to, s3Scheme) }

// readS3 reads s3://BUCKET[/PREFIX][?endpoint=URL&region=NAME]. What is not in it comes from the
// variables that Amazon's own tools read.
func readS3(flag, to string) (p s3Place, err error) {
	u, err := url.Parse(to)
	if err != nil {
		return p, fmt.Errorf("--%s: %w", flag, err)
	}
	query := u.Query()
	for key := range query {
		if key != "endpoint" && key != "region" {
			return p, fmt.Errorf("--%s: %q is not known in an s3 URL: endpoint and region are", flag, key)
		}
	}
	p.bucket, p.prefix = u.Host, strings.Trim(u.Path, "/")
	switch {
	case u.User != nil:
		return p, fmt.Errorf("--%s: keys do not belong in a flag, which others can read: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write them to a credentials file", flag)
	case p.bucket == "":
		return p, fmt.Errorf("--%s must name a bucket, as s3://BUCKET/PREFIX (set to %q)", flag, to)
	case s3utils.CheckValidBucketName(p.bucket) != nil:
		return p, fmt.Errorf("--%s: bucket %q: %w", flag, p.bucket, s3utils.CheckValidBucketName(p.bucket))
	case u.Fragment != "":
		return p, fmt.Errorf("--%s: what follows # in %q has no meaning", flag, to)
	}
	endpoint := cmp.Or(query.Get("endpoint"), os.Getenv("AWS_ENDPOINT_URL_S3"), os.Getenv("AWS_ENDPOINT_URL"))
	if p.amazon = endpoint == ""; p.amazon {
		endpoint = s3Amazon
	}
	p.region = cmp.Or(query.Get("region"), os.Getenv("AWS_REGION"), os.Getenv("AWS_DEFAULT_REGION"))
	p.endpoint, err = url.Parse(endpoint)
	if err != nil || p.endpoint.Host == "" || (p.endpoint.Scheme != "http" && p.endpoint.Scheme != "https") || strings.Trim(p.endpoint.Path, "/") != "" {
		return p, fmt.Errorf("--%s: the endpoint of an s3 URL must be like https://HOST:PORT (set to %q)", flag, endpoint)
	}
	return p, nil
}

// open gives the depot. It does not speak to the store.
func (p s3Place) open(flag string) (Depot, error) {
	keys := []credentials.Provider{&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}}
	if p.amazon {
		keys = append(keys, &credentials.IAM{})
	} else if v, err := credentials.NewChainCredentials(keys).GetWithContext(nil); err != nil || v.AccessKeyID == "" {
		return nil, fmt.Errorf("--%s: there are no keys for %s: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE to what the credentials file has", flag, p.endpoint.Host)
	}
	secure := p.endpoint.Scheme == "https"
	transport, err := minio.DefaultTransport(secure)
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	if file := os.Getenv("AWS_CA_BUNDLE"); file != "" && secure {
		if err := trust(transport, file); err != nil {
			return nil, fmt.Errorf("--%s: AWS_CA_BUNDLE: %w", flag, err)
		}
	}
	client, err := minio.New(p.endpoint.Host, &minio.Options{
		Creds: credentials.NewChainCredentials(keys), Secure: secure, Region: p.region, Transport: transport, MaxRetries: s3Tries,
	})
	if err != nil {
		return nil, fmt.Errorf("--%s: %w", flag, err)
	}
	return &s3Depot{core: minio.Core{Client: client}, bucket: p.bucket, prefix: p.prefix}, nil
}

// trust has a transport trust the certificates of a file alone.
func trust(t *http.Transport, file string) error {
	pem, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("there is no certificate in %s", file)
	}
	if t.TLSClientConfig == nil {
		t.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	t.TLSClientConfig.RootCAs = pool
	return nil
}

func (d *s3Depot) String() string { return s3Scheme + path.Join(d.bucket, d.prefix) }

// object is the name of an object; empty: the depot itself, without a prefix.
func (d *s3Depot) object(name string) string {
	if o := path.Join(d.prefix, name); o != "." {
		return o
	}
	return ""
}

// wrong makes a store's error one that says where it comes from.
func (d *s3Depot) wrong(what, name string, err error) error {
	if err == nil {
		return nil
	}
	var answer minio.ErrorResponse
	if errors.As(err, &answer) && answer.Code != "" && !strings.Contains(answer.Message, answer.Code) {
		err = fmt.Errorf("%w (%s)", err, answer.Code)
	}
	return fmt.Errorf("%s: %s %s: %w", d, what, name, err)
}

var errSlowStore = fmt.Errorf("the store has not answered within %v", s3Patience)

// within bounds one request, which carries so many bytes.
func within(ctx context.Context, size int) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, s3Patience+time.Duration(size/s3SlowestBytes)*time.Second, errSlowStore)
}

// cause is err, or why ctx ended if that is behind it.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (d *s3Depot) List(ctx context.Context, folder string) (items []Item, err error) {
	prefix := ""
	if p := d.object(folder); p != "" {
		prefix = p + "/"
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(s3Patience, func() { cancel(errSlowStore) })
	defer idle.Stop()
	for o := range d.core.Client.ListObjects(ctx, d.bucket, minio.ListObjectsOptions{Prefix: prefix}) {
		idle.Reset(s3Patience)
		if o.Err != nil {
			return nil, d.wrong("list", folder, cause(ctx, o.Err))
		}
		// A name that is empty is the folder itself: some tools make such an object.
		if name, isFolder := strings.CutSuffix(strings.TrimPrefix(o.Key, prefix), "/"); name != "" {
			items = append(items, Item{Name: name, Folder: isFolder, Bytes: o.Size})
		}
	}
	if err := ctx.Err(); err != nil { // the library ends without a word
		return nil, d.wrong("list", folder, context.Cause(ctx))
	}
	slices.SortFunc(items, func(a, b Item) int { return strings.Compare(a.Name, b.Name) })
	return items, nil
}

func (d *s3Depot) Read(ctx context.Context, name string) (io.ReadCloser, error) {
	reading, cancel := context.WithCancelCause(ctx)
	idle := time.AfterFunc(s3Patience, func() { cancel(errSlowStore) })
	body, _, _, err := d.core.GetObject(reading, d.bucket, d.object(name), minio.GetObjectOptions{})
	idle.Stop()
	if err != nil {
		err = cause(reading, err)
		cancel(nil)
		if minio.ToErrorResponse(err).Code == "NoSuchKey" {
			return nil, fmt.Errorf("%s/%s: %w", d, name, iofs.ErrNotExist)
		}
		return nil, d.wrong("read", name, err)
	}
	return &s3Body{ReadCloser: body, ctx: reading, cancel: cancel, idle: idle, wrong: func(err error) error { return d.wrong("read", name, err) }}, nil
}

// s3Body is an object that is being read. Its reader may take its time; the store may not.
type s3Body struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	idle   *time.Timer
	wrong  func(error) error
}

func (b *s3Body) Read(p []byte) (int, error) {
	b.idle.Reset(s3Patience)
	n, err := b.ReadCloser.Read(p)
	b.idle.Stop()
	if err != nil && err != io.EOF {
		err = b.wrong(cause(b.ctx, err))
	}
	return n, err
}

func (b *s3Body) Close() error {
	b.idle.Stop()
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// Write makes one request of it, whose bytes the store checks by their sum.
func (d *s3Depot) Write(ctx context.Context, name string, b []byte) error {
	ctx, cancel := within(ctx, len(b))
	defer cancel()
	_, err := d.core.Client.PutObject(ctx, d.bucket, d.object(name), bytes.NewReader(b), int64(len(b)),
		minio.PutObjectOptions{DisableMultipart: true, SendContentMd5: true, ContentType: "application/octet-stream"})
	return d.wrong("write", name, cause(ctx, err))
}

func (d *s3Depot) Remove(ctx context.Context, name string) error {
	ctx, cancel := within(ctx, 0)
	defer cancel()
	err := d.core.RemoveObject(ctx, d.bucket, d.object(name), minio.RemoveObjectOptions{})
	if minio.ToErrorResponse(err).Code == "NoSuchKey" {
		return nil
	}
	return d.wrong("remove", name, cause(ctx, err))
}

func (d *s3Depot) RemoveFolder(ctx context.Context, folder string) error {
	items, err := d.List(ctx, folder)
	for _, item := range items {
		name := path.Join(folder, item.Name)
		if item.Folder {
			err = d.RemoveFolder(ctx, name)
		} else {
			err = d.Remove(ctx, name)
		}
		if err != nil {
			return err
		}
	}
	return err
}
