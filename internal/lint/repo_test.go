package lint

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tracked lists the files of the tree that are in git or about to be.
func tracked(t testing.TB) []string {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root(t)
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	return strings.FieldsFunc(string(out), func(r rune) bool { return r == 0 })
}

// Where packages come from is the business of the machine that builds, so no
// such host is named in git. (Joined here, or this file would name them.)
var registries = []string{
	"proxy.golang" + ".org", "sum.golang" + ".org", "gopro" + "xy.", "registry." + "npmjs", "pypi" + ".org",
	"crates" + ".io", "rubygems" + ".org", "repo.maven" + ".apache", "docker" + ".io", "gcr" + ".io", "quay" + ".io",
	"ghcr" + ".io", "deb.debian" + ".org", "security.debian" + ".org", "archive.ubuntu" + ".com",
}

func TestNoRegistriesNoPaths(t *testing.T) {
	paths := machinePaths(t)
	for _, name := range tracked(t) {
		data, err := os.ReadFile(filepath.Join(root(t), name))
		if err != nil {
			continue // deleted, or a link
		}
		for _, fault := range forbidden(data, paths) {
			t.Errorf("%s names %s", name, fault)
		}
	}
}

// machinePaths are folders of the machine that runs this test.
func machinePaths(t testing.TB) []string {
	paths := []string{root(t)}
	// The folder above, unless it is one that every machine has.
	switch parent := filepath.Dir(root(t)); parent {
	case "/", "/home", "/root", "/tmp", "/usr", "/opt", "/src", "/var":
	default:
		paths = append(paths, parent+"/")
	}
	for _, v := range []string{"GOMODCACHE", "GOCACHE"} {
		if out, err := exec.Command("go", "env", v).Output(); err == nil && len(bytes.TrimSpace(out)) > 0 {
			paths = append(paths, string(bytes.TrimSpace(out)))
		}
	}
	return paths
}

func forbidden(data []byte, paths []string) (faults []string) {
	for _, host := range registries {
		if bytes.Contains(data, []byte(host)) {
			faults = append(faults, "the package registry "+host)
		}
	}
	for _, p := range paths {
		if containsPath(data, p) {
			faults = append(faults, "a path of this machine: "+p)
		}
	}
	return faults
}

// containsPath finds p where a path begins: "/srv/x" is not in "net/srv/x".
func containsPath(data []byte, p string) bool {
	for {
		i := bytes.Index(data, []byte(p))
		if i < 0 {
			return false
		}
		if i == 0 || !isPathByte(data[i-1]) {
			return true
		}
		data = data[i+1:]
	}
}

func isPathByte(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || strings.IndexByte("._-~}/*", b) >= 0
}

// TestForbiddenCanFail shows that the search finds what it is for.
func TestForbiddenCanFail(t *testing.T) {
	paths := []string{"/srv/" + "x"}
	for text, want := range map[string]int{
		"nothing":                         0,
		"from " + registries[0] + "/x":    1,
		"cd /srv/" + "x && make":          1,
		"the folder net/srv/" + "x is ok": 0,
	} {
		if got := forbidden([]byte(text), paths); len(got) != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
