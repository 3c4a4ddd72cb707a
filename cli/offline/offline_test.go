package offline

import (
	"bytes"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestRestoreURLs: --initial-cluster and --initial-advertise-peer-urls may say the same address in
// two ways, and of every scheme that a member takes. What is let through fails at the file.
func TestRestoreURLs(t *testing.T) {
	const name = "localhost." // with the dot no case of its own, but a name to resolve
	ips, err := net.DefaultResolver.LookupIPAddr(t.Context(), name)
	if err != nil || len(ips) == 0 {
		t.Skipf("cannot resolve %s: %v", name, err)
	}
	address := net.JoinHostPort(ips[0].String(), "2380")
	for _, c := range []struct{ cluster, advertised, says string }{
		{"http://" + name + ":2380", "http://" + address, ""},
		{"http://" + address, "http://" + name + ":2380", ""},
		{"unix://localhost:20001", "unix://localhost:20001", ""},
		{"unixs:///tmp/peer", "unixs:///tmp/peer", ""},
		{"http://" + address, "http://" + name + ":2381", "--initial-cluster has m=http://" + address + " but missing from --initial-advertise-peer-urls"},
		{"unix:///tmp/a", "unix:///tmp/b", "--initial-cluster has m=unix:///tmp/a but missing from --initial-advertise-peer-urls=unix:///tmp/b"},
		{"unix:///tmp/a", "ftp://b:1", "URL scheme must be http, https, unix, or unixs: ftp://b:1"},
		{"unix:///tmp/a", "", "--initial-advertise-peer-urls must name at least one URL"},
	} {
		if c.says == "" {
			c.says = "no such file"
		}
		var out, errs bytes.Buffer
		dir := t.TempDir()
		code := Main("belay util", []string{"snapshot", "restore", filepath.Join(dir, "none"), "--data-dir=" + filepath.Join(dir, "data"),
			"--name=m", "--initial-cluster=m=" + c.cluster + ",o=http://other:1", "--initial-advertise-peer-urls=" + c.advertised}, &out, &errs)
		if code != 1 || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%s and %s: code %d, %s, want %s", c.cluster, c.advertised, code, &errs, c.says)
		}
	}
}

// A command that is mistyped, or left out before a path, does not succeed by printing the help: a
// script would take that for a backup that was verified.
func TestUnknownPartsFail(t *testing.T) {
	for _, args := range []string{"inspect /some/data", "backup verfy", "snapshot staus f"} {
		var out, errs bytes.Buffer
		name := strings.Fields(args)
		if code := Main("belay util", name, &out, &errs); code == 0 || !strings.Contains(errs.String(), "unknown command "+strconv.Quote(name[1])+" for \"belay util "+name[0]+"\": one of ") {
			t.Errorf("%s: code %d, %s", args, code, &errs)
		}
	}
	for _, args := range []string{"inspect", "backup", "inspect --help"} {
		var out, errs bytes.Buffer
		if code := Main("belay util", strings.Fields(args), &out, &errs); code != 0 || !strings.Contains(out.String()+errs.String(), "Usage:") {
			t.Errorf("%s: code %d, %s", args, code, &errs)
		}
	}
	var out, errs bytes.Buffer
	if code := Main("belay util", []string{"raftlog", t.TempDir()}, &out, &errs); code == 0 || !strings.Contains(errs.String(), "holds no raft log") {
		t.Errorf("a directory without a log: code %d, %s", code, &errs)
	}
}
