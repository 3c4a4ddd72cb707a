package datadir

import (
	"strings"
	"testing"

	"github.com/belaydb/belay/command"
)

// Whose ids and names --initial-cluster makes, and what it refuses.
func TestFound(t *testing.T) {
	a, b := founded(t, "a"), founded(t, "b")
	if a.Cluster != b.Cluster || a.Member == b.Member || len(a.Members) != 3 || !a.Founds() {
		t.Errorf("%+v, %+v", a, b)
	}
	for i, m := range a.Members {
		if b.Members[i].ID != m.ID || i > 0 && m.ID <= a.Members[i-1].ID {
			t.Error("members are not the same, or not in the order of their ids")
		}
	}
	if other, err := Found("a", "a=http://a:1,b=http://b:1,c=http://c:1", "another token"); err != nil || other.Cluster == a.Cluster {
		t.Errorf("%+v, %v", other, err)
	}
	for _, c := range []struct{ name, cluster, wants string }{
		{"a", "", "initial cluster unset"},
		{"a", "a", "not of the form name=peer-url"},
		{"a", "=http://a:1", "not of the form name=peer-url"},
		{"d", "a=http://a:1", `couldn't find local name "d"`},
		{"a", "a=http://a:1,b=http://a:1", "duplicate url"},
		{"a", "a=http://a:1,a=http://a:1", "duplicate url"},
	} {
		if _, err := Found(c.name, c.cluster, "t"); err == nil || !strings.Contains(err.Error(), c.wants) {
			t.Errorf("%q of %q: %v, want %q", c.name, c.cluster, err, c.wants)
		}
	}
}

// Data of one member is refused under the flags of another, and of no one else.
func TestCheckOwner(t *testing.T) {
	const cluster = "a=http://a:1,b=http://b:1,c=http://c:1"
	id := founded(t, "a")
	known := func(names ...string) (members []*command.Member) {
		for i, m := range id.Members {
			c := *m
			c.Name = names[i]
			members = append(members, &c)
		}
		return members
	}
	own := func(name string) []*command.Member { // this member's name, and what the flags call the others
		names := make([]string, 3)
		for i, m := range id.Members {
			if names[i] = m.Name; m.ID == id.Member {
				names[i] = name
			}
		}
		return known(names...)
	}
	p := &Parts{paths: PathsOf("/data", "/wal")}
	for _, c := range []struct {
		what    string
		members []*command.Member
		flags   Flags
		refused string // a part of the error; "": none
	}{
		{"its own", own("a"), Flags{Name: "a", PeerURLs: []string{"http://a:1"}}, ""},
		{"new URLs", own("a"), Flags{Name: "a", PeerURLs: []string{"http://new:1"}}, ""},
		{"another's URLs", own("a"), Flags{Name: "a", PeerURLs: []string{"http://b:1"}}, ""},
		{"a new name", own("a"), Flags{Name: "new", PeerURLs: []string{"http://a:1"}}, ""},
		{"another's name", own("a"), Flags{Name: "b", PeerURLs: []string{"http://a:1"}}, `named "a", but the flags are those of member`},
		{"a new name, another's URLs", own("a"), Flags{Name: "new", PeerURLs: []string{"http://c:1"}}, `named "c"`},
		{"young, its own", nil, Flags{Name: "a", InitialCluster: cluster, InitialClusterToken: "token"}, ""},
		{"young, another's", nil, Flags{Name: "b", InitialCluster: cluster, InitialClusterToken: "token"}, `/data (log in /wal/log)`},
		{"young, another cluster's", nil, Flags{Name: "b", InitialCluster: cluster, InitialClusterToken: "else"}, ""},
		{"young, no name of its own", own(""), Flags{Name: "c", InitialCluster: cluster, InitialClusterToken: "token"}, `named "c"`},
		{"young, nonsense", nil, Flags{Name: "b", InitialCluster: "nonsense"}, ""},
	} {
		err := p.CheckOwner(id, c.members, c.flags)
		if (err != nil) != (c.refused != "") || err != nil && !strings.Contains(err.Error(), c.refused) {
			t.Errorf("%s: %v, want %q", c.what, err, c.refused)
		}
	}
}
