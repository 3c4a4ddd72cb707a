package offline

import (
	"bytes"
	"strings"
	"testing"
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
