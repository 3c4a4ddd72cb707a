package neighbours

import (
	"path"
	"regexp"
	"strings"
)

// A Group is what a process belongs to, as its cgroup's path tells.
type Group struct {
	Kind string `json:"kind,omitempty"` // unit, container, pod or cgroup; empty: nothing in particular
	Name string `json:"name,omitempty"`
}

// String is "pod 2c48913c", or a unit's name.
func (g Group) String() string {
	if g.Kind == "unit" {
		return g.Name
	}
	return strings.TrimSpace(g.Kind + " " + g.Name)
}

var (
	podPattern       = regexp.MustCompile(`(?:^|[-/])pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice|/|$)`)
	containerPattern = regexp.MustCompile(`(?:^|[-/:])([0-9a-f]{64})(?:\.scope|/|$)`)
)

// groupOf reads the path of a cgroup. Static pods, as kubeadm's etcd, have 32 digits where others
// have a UUID.
func groupOf(cgroup string) Group {
	if m := podPattern.FindStringSubmatch(cgroup); m != nil {
		return Group{"pod", strings.ReplaceAll(m[1], "_", "-")}
	}
	if m := containerPattern.FindStringSubmatch(cgroup); m != nil {
		return Group{"container", m[1][:12]}
	}
	for p := path.Clean("/" + cgroup); p != "/"; p = path.Dir(p) {
		if base := path.Base(p); strings.HasSuffix(base, ".service") || strings.HasSuffix(base, ".scope") {
			return Group{"unit", base}
		}
	}
	if p := path.Clean("/" + cgroup); p != "/" && !strings.HasSuffix(p, ".slice") {
		return Group{"cgroup", p}
	}
	return Group{}
}
