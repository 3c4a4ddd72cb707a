package snapshotfile

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
)

// TestCheckWhatIsNoFile: a pipe, as of `zstd -dc x.db.zst | belay util snapshot status /dev/stdin`, was
// said to be empty.
func TestCheckWhatIsNoFile(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("no /dev/fd")
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for _, path := range []string{fmt.Sprintf("/dev/fd/%d", r.Fd()), os.DevNull} {
		if err := checkFile(path, true); err == nil || !strings.HasPrefix(err.Error(), path+" is a pipe or a device") {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := checkFile(t.TempDir(), true); err == nil || !strings.Contains(err.Error(), "is a directory") {
		t.Error(err)
	}
}
