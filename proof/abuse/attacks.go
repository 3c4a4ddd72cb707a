package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/belaydb/belay/proof/cluster"
)

// An attack is one row of the table.
type attack struct {
	name  string
	needs string // what the attacker must have
	how   string // what it does

	args  []string // flags of the members besides the usual ones
	users bool     // authentication is on
	token string   // the user whose token the attacker has; "": none
	tls   bool     // the client port speaks TLS
	few   int      // limit of the members' file descriptors; 0: the usual one

	memory  int64 // bytes that the attacked member may hold resident; 0: 400 MiB
	written int64 // bytes that the attack writes, and all members hold for a while
	watched string
	// unfit is the reason why the row is not part of the quick test.
	unfit string

	prepare   func(ctx context.Context, r *run) error                // may be called twice
	do        func(ctx context.Context, t *target, c *counter) error // in the attacker's process, until ctx ends
	meanwhile func(ctx context.Context, r *run)                      // beside the light client
	verify    func(ctx context.Context, r *run) []string             // what else is wrong
}

const (
	connection = "a TCP connection"
	noUsers    = "any client, without users"
	certless   = "a TCP connection to the peer port without TLS"
	reading    = "the right to read a range"
	anyToken   = "a token without rights"
)

// filled prepares keys under pub/.
func filled(keys, quickKeys, bytes int) func(ctx context.Context, r *run) error {
	return func(ctx context.Context, r *run) error {
		if r.quick {
			return r.fill(ctx, quickKeys, bytes)
		}
		return r.fill(ctx, keys, bytes)
	}
}

const mib = 1 << 20

// attacks are the rows, in the order of the table.
func attacks() []attack {
	return []attack{
		{name: "user-get", needs: connection, how: "20 UserGet a second without a token, the name 1.4 MiB of control characters, 1.4 KB on the wire", users: true, do: strangersGet("UserGet")},
		{name: "role-get", needs: connection, how: "the same with RoleGet", users: true, do: strangersGet("RoleGet")},
		{name: "denied-delete", needs: anyToken, how: "32 DeleteRange at once that are denied, keys of 1.4 MiB", users: true, token: mallory, do: deniedDeletes},
		{name: "long-keys", needs: connection, how: "64 Range at once without a token, keys of 1.9 MiB, 1.9 KB on the wire", users: true, memory: 600 * mib, do: longKeys},
		{name: "txn-sorted", needs: reading, how: "transactions of 30 x 30 nested ranges with limit 1, sorted by value, over 20,000 keys", users: true, token: reader, prepare: filled(20_000, 1000, 100), memory: 600 * mib, do: sortedTxn},
		{name: "txn-counts", needs: reading, how: "transactions of 64 x 64 counts of 20,000 keys", users: true, token: reader, prepare: filled(20_000, 1000, 100), do: countingTxn},
		{name: "txn-compares", needs: reading, how: "transactions of 128 comparisons of 20,000 keys", users: true, token: reader, prepare: filled(20_000, 1000, 100), do: comparingTxn},
		{name: "txn-answers", needs: reading, how: "transactions of 127 ranges of 10 MB each", users: true, token: reader, prepare: filled(100, 10, 100_000), memory: 3000 * mib, do: answeringTxn},
		{name: "txn-deep", needs: noUsers, how: "transactions nested 60 deep, and encoded ones nested 9000 deep", do: deepTxn},
		{name: "readers", needs: reading, how: "100 clients that each read 10 MB again and again", users: true, token: reader, prepare: filled(100, 20, 100_000), memory: 1600 * mib, do: readers},
		{name: "answers-unread", needs: noUsers, how: "4 connections that ask for a value of 200 KB again and again, and read nothing", prepare: filled(1, 1, 200_000), memory: 1300 * mib, do: unreadAnswers},
		{name: "snapshots", needs: noUsers, how: "40 snapshots of 100 MB, of which nothing is read", prepare: filled(1000, 50, 100_000), memory: 600 * mib, written: 300 * mib, do: unreadSnapshots},
		{name: "watches-unread", needs: noUsers, how: "300 watches that are not read while 10 MB are written each second", memory: 1600 * mib, written: 400 * mib, do: unreadWatches},
		{name: "watches", needs: noUsers, how: "20,000 watches, on one stream, of the keys that the light clients write", do: manyWatches},
		{name: "streams", needs: noUsers, how: "10,000 streams on four connections", memory: 600 * mib, do: manyStreams},
		{name: "leases", needs: noUsers, how: "32 clients that grant leases without end", memory: 600 * mib, written: 200 * mib, do: grantLeases},
		{name: "wrong-passwords", needs: connection, how: "30 logins a second with a wrong password", users: true, watched: "a right login", do: wrongPasswords, meanwhile: rightLogins},
		{name: "writes", needs: noUsers, how: "20 MB are written each second, and nothing else: what the rows below have beside them", few: 1024, memory: 900 * mib, written: 400 * mib, do: writesAlone},
		{name: "silent-client", needs: connection, how: "1,500 silent connections to the client port at a limit of 1,024 descriptors, while 20 MB are written each second", few: 1024, memory: 900 * mib, written: 400 * mib, do: silent("client")},
		{name: "silent-peer", needs: connection, how: "the same to the peer port", few: 1024, memory: 900 * mib, written: 400 * mib, do: silent("peer")},
		{name: "silent-metrics", needs: connection, how: "the same to the metrics port", few: 1024, memory: 900 * mib, written: 400 * mib, do: silent("metrics")},
		{name: "tls-silent", needs: connection, how: "1,000 TLS connections, each with 250 KiB of headers that do not end", tls: true, do: tlsPrefaces},
		{name: "http1-headers", needs: connection, how: "1,000 connections, each with 900 KiB of headers of HTTP/1 that do not end", do: http1Headers},
		{name: "call-headers", needs: connection, how: "1,000 connections, each with 220 KiB of headers of a call that do not end", do: callHeaders},
		{name: "tls-pings", needs: connection, how: "20 TLS connections that send PING before the first request", tls: true, do: tlsPings},
		{name: "rapid-reset", needs: connection, how: "8 connections that open and reset streams", do: rapidReset},
		{name: "continuation", needs: connection, how: "8 connections with a CONTINUATION without end", do: continuation},
		{name: "settings", needs: connection, how: "8 connections that send SETTINGS and PING without end and read nothing", do: settingsFlood},
		{name: "headers", needs: connection, how: "4 MiB of headers in 8 KB, again and again", do: headerBomb},
		{name: "half-messages", needs: connection, how: "500 messages of 1.9 MiB that lack their last byte", memory: 1400 * mib, do: halfMessages},
		{name: "announced", needs: connection, how: "100 connections that announce 50 messages of 1.9 MiB each, send nothing of them, and announce others", watched: "a put of 1 MB", do: announcedMessages, meanwhile: longPuts},
		{name: "gzip", needs: connection, how: "messages of 200 MiB of zeros, 200 KB on the wire", do: gzipBomb},
		{name: "json", needs: connection, how: "8 JSON bodies of 100 MiB at once", memory: 1000 * mib, do: jsonBomb},
		{name: "pages", needs: connection, how: "32 clients that ask for /metrics without a pause", do: scrapes},
		{name: "gateway-plain", needs: "a page in a browser on the machine", how: "POST of text/plain that writes", do: plainPost, verify: absent("plain")},
		{name: "gateway-origin", needs: "a page in a browser on the machine", how: "a websocket from another origin than --cors lets in", args: []string{"--cors=http://good.example:80"}, do: foreignSocket, verify: socketRefused},
		{name: "password-page", needs: connection, how: "/debug/vars, where the command line is", args: []string{"--discovery-password=hush-hush"}, do: idle, verify: passwordNotTold},
		{name: "file-modes", needs: "another user of the machine", how: "reads files of the data directory", do: idle, verify: filesPrivate},
		{name: "peer-posts", needs: certless, how: "8 POSTs of 500 MiB to /raft by a stranger", do: peerPosts},
		{name: "peer-forged", needs: certless, how: "a proposal that writes, by a stranger", do: peerForged, verify: absent("forged")},
		{name: "peer-poison", needs: certless, how: "a proposal that nobody can decode, in the name of a member", do: peerPoison, verify: restarts, unfit: "needs two members"},
		{name: "peer-term", needs: certless, how: "a vote request of term 2^64-1, in the name of a member", do: peerTerm, verify: restarts, unfit: "needs two members"},
	}
}

// idle does nothing: the row is about what exists without an attack.
func idle(ctx context.Context, _ *target, _ *counter) error {
	<-ctx.Done()
	return nil
}

// rightLogins logs in with the right password meanwhile.
func rightLogins(ctx context.Context, r *run) {
	auth := pb.NewAuthClient(r.conns[0])
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		began := time.Now()
		_, err := auth.Authenticate(call, &pb.AuthenticateRequest{Name: reader, Password: reader})
		cancel()
		if r.watching = max(r.watching, time.Since(began)); err != nil {
			r.note("a right login: %s", rpctypes.ErrorDesc(err))
		}
		pause(ctx, 300*time.Millisecond)
	}
	r.note("a right login took %v at worst", cluster.Round(r.watching))
}

// longPuts writes a long value again and again meanwhile.
func longPuts(ctx context.Context, r *run) {
	kv := pb.NewKVClient(r.conns[0])
	value := bytes.Repeat([]byte("v"), 1_000_000)
	for ctx.Err() == nil {
		call, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		began := time.Now()
		_, err := kv.Put(call, &pb.PutRequest{Key: []byte("long"), Value: value})
		cancel()
		if r.watching = max(r.watching, time.Since(began)); err != nil {
			r.note("a put of 1 MB: %s", rpctypes.ErrorDesc(err))
		}
		pause(ctx, 300*time.Millisecond)
	}
	r.note("a put of 1 MB took %v at worst", cluster.Round(r.watching))
}

func passwordNotTold(ctx context.Context, r *run) (faults []string) {
	text, err := page(ctx, r.c.Members[0].ClientURL+"/debug/vars")
	switch {
	case err != nil:
		return []string{err.Error()}
	case strings.Contains(text, "hush-hush"):
		faults = append(faults, "/debug/vars tells the password")
	}
	return faults
}

func filesPrivate(_ context.Context, r *run) (faults []string) {
	loose := 0
	err := filepath.WalkDir(r.c.Members[0].DataDir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return nil // files disappear while we look
		}
		if info, err := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			loose++
		}
		return nil
	})
	if err != nil || loose > 0 {
		faults = append(faults, fmt.Sprintf("%d files can be read by others", loose))
	}
	return faults
}

// copyBounded copies at most 10 MiB.
func copyBounded(w io.Writer, from io.Reader) (int64, error) {
	return io.Copy(w, io.LimitReader(from, 10*mib))
}
