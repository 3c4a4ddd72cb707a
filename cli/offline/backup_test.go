package offline

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-semver/semver"

	"github.com/belaydb/belay/snapshotfile"
)

// TestBackupArguments: what cannot be is refused with a text that names the flag and what to do.
func TestBackupArguments(t *testing.T) {
	t.Parallel()
	empty := t.TempDir()
	for _, tc := range []struct {
		args string
		code int
		want string
	}{
		{"list", 128, "--from is required"},
		{"list --from " + empty, 1, "there are no backups in"},
		{"list --from " + empty + "/none", 1, "/none: there is no such directory"},
		{"list --from ftp://x", 128, `not "ftp://x"`},
		{"list --from " + empty + " -w fields", 4, "fields not supported"},
		{"verify a --all --from " + empty, 128, "name a backup or give --all"},
		{"verify --from " + empty + " --max-bytes-per-second -1", 128, "must not be negative"},
		{"restore --from " + empty + " --time noon", 128, `--time: "noon" is no time`},
		{"restore --from " + empty + " --time= ", 128, "--time must not be empty"},
		{"restore --from " + empty + " --revision 0", 128, "--revision must be a revision"},
		{"restore --from " + empty + " --revision 4 --time 10m", 128, "give one"},
		{"restore --from " + empty + " --bump-revision 4", 128, "go together"},
		{"restore --from " + empty, 1, "there are no backups in"},
	} {
		var out, errs bytes.Buffer
		code := Main("belay util", append([]string{"backup"}, strings.Fields(tc.args)...), &out, &errs)
		if code != tc.code || !strings.Contains(errs.String(), tc.want) {
			t.Errorf("%s: exit code %d, %s; want %d, %s", tc.args, code, errs.String(), tc.code, tc.want)
		}
	}
	var out, errs bytes.Buffer
	if code := Main("etcdutl", []string{"backup", "list"}, &out, &errs); code == 0 {
		t.Error("etcdutl has backups")
	}
}

// TestEtcdutlArguments: by the name etcdutl, commands without arguments take them as etcdutl's do, and
// what is no version is refused in its words.
func TestEtcdutlArguments(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name, args string
		code       int
		want       string
	}{
		{"etcdutl", "version x", 0, ""},
		{"belay util", "version x", 1, "unknown command"},
		{"etcdutl", "ver", 0, ""}, // as in etcdutl, which has no verify
		{"etcdutl", "-w json snap stat none", 1, "stat none"},
		{"belay util", "s s none", 1, "stat none"},
		{"belay util", "i sto none", 1, "stat none"},
		{"belay util", "veri none", 1, `unknown command "none" for "belay util verify"`},
		{"etcdutl", "x", 1, "unknown command"},
		{"etcdutl", "defrag --data-dir none x", 1, "Failed to defragment etcd data[none]"},
		{"etcdutl", "migrate --data-dir none --target-version v3.6 x", 128, `failed to parse target version: strconv.ParseInt: parsing "v3": invalid syntax`},
		{"etcdutl", "migrate --data-dir none --target-version 3.6.1", 128, `wrong target version format, expected "X.Y", got "3.6.1"`},
		{"belay util", "migrate --data-dir none --to-etcd 3.6", 128, "migrate takes no arguments, only flags: is --to-etcd=3.6 meant?"},
		{"belay util", "move --plan --to-etcd 3.6", 128, "move takes no arguments, only flags: is --to-etcd=3.6 meant?"},
		{"belay util", "move all", 128, "move takes no arguments, only flags"},
		{"etcdutl", "migrate --data-dir none --target-version 3.4", 128, `target version "3.4" not supported. Minimal "3.5"`},
	} {
		var out, errs bytes.Buffer
		if code := Main(tc.name, strings.Fields(tc.args), &out, &errs); code != tc.code || !strings.Contains(errs.String(), tc.want) {
			t.Errorf("%s %s: exit code %d, %s; want %d, %s", tc.name, tc.args, code, errs.String(), tc.code, tc.want)
		}
	}
}

// TestLogSchema: what etcdutl's migrate logs, step by step, and where it was forced.
func TestLogSchema(t *testing.T) {
	t.Parallel()
	v := func(minor int64) semver.Version { return semver.Version{Major: 3, Minor: minor} }
	for _, tc := range []struct {
		changed snapshotfile.SchemaChange
		want    []string
	}{
		{snapshotfile.SchemaChange{From: v(6), To: v(6)}, []string{`info storage version up-to-date {"storage-version": "3.6"}`}},
		{snapshotfile.SchemaChange{From: v(5), To: v(7)}, []string{`info updated storage version {"new-storage-version": "3.6.0"}`, `info updated storage version {"new-storage-version": "3.7.0"}`}},
		{snapshotfile.SchemaChange{From: v(6), To: v(5)}, []string{`info updated storage version {"new-storage-version": "3.5.0"}`}},
		{snapshotfile.SchemaChange{From: v(7), To: v(8), Forced: errors.New("why")}, []string{`info normal migrate failed, trying with force {"error": "why"}`, `warn forcefully set storage version {"storage-version": "3.8"}`}},
		{snapshotfile.SchemaChange{From: v(7), To: v(5), Forced: errors.New("why")}, []string{`info normal migrate failed, trying with force {"error": "why"}`, `warn forcefully cleared storage version`}},
	} {
		var out bytes.Buffer
		logSchema(etcdutlLog(&out), tc.changed)
		var got []string
		for line := range strings.Lines(out.String()) {
			_, line, _ = strings.Cut(strings.TrimSpace(line), "\t") // the time
			got = append(got, strings.ReplaceAll(line, "\t", " "))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%v to %v: %q, want %q", tc.changed.From, tc.changed.To, got, tc.want)
		}
	}
}
