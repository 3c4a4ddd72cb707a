package rolling

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// picture makes a cluster of text: a word for each member, its name, "@" and its peer URL if that
// is not of the name, and what it is: - silent, ? never started, ~ learner, ! CORRUPT, * leader. Ids
// count from 1.
func picture(text string) *Cluster {
	c := &Cluster{ID: 99}
	for i, word := range strings.Fields(text) {
		name := strings.TrimRight(word, "-?~!*")
		marks := word[len(name):]
		name, url, apart := strings.Cut(name, "@")
		if !apart {
			url = name
		}
		m := &Member{Member: &pb.Member{ID: uint64(i + 1), Name: name, PeerURLs: []string{"http://" + url}}, Endpoint: name}
		m.IsLearner = strings.Contains(marks, "~")
		if strings.Contains(marks, "?") {
			m.Name = ""
		}
		if strings.ContainsAny(marks, "-?") {
			m.Err = errors.New("refused")
		} else {
			m.Status = &clientv3.StatusResponse{Header: &pb.ResponseHeader{MemberId: m.ID}, RaftAppliedIndex: 10}
		}
		if strings.Contains(marks, "!") {
			c.Alarms = append(c.Alarms, &pb.AlarmMember{MemberID: m.ID, Alarm: pb.AlarmType_CORRUPT})
		}
		if strings.Contains(marks, "*") {
			c.Leader = m.ID
		}
		c.Members = append(c.Members, m)
	}
	return c
}

func TestDecide(t *testing.T) {
	names := map[step]string{stepAsk: "ask", stepRemove: "remove", stepAdd: "add", stepStart: "start", stepPromote: "promote",
		stepCompare: "compare", stepHandOver: "hand over", stepDone: "done"}
	for _, tc := range []struct{ cluster, who, to, want string }{
		// Dead: removed, added, started, promoted, compared.
		{"a* b c-", "c", "", "remove"},
		{"a* b c-", "3", "", "remove"},
		{"a* b", "c", "c@c", "add"},
		{"a* b c?~", "c", "", "start"},
		{"a* b c?~", "3f", "c@c", "start"},
		{"a* b c~", "c", "", "promote"},
		{"a* b c~", "3f", "c@c", "promote"},
		{"a* b c", "3f", "c@c", "compare"},
		{"a* b d-", "3", "d@e", "remove"},
		// One that runs: added, started, promoted, compared, leadership, removed.
		{"a* b c", "c", "d@d", "add"},
		{"a* b c d?~", "c", "d@d", "start"},
		{"a* b c d~", "c", "d@d", "promote"},
		{"a* b c d", "c", "d@d", "compare"},
		{"a* b c- d~", "c", "d@d", "remove"}, // it has died meanwhile
		{"a* b c- d", "c", "d@d", "remove"},
		{"a*", "a", "d@d", "add"},
		{"a* d~", "a", "d@d", "promote"},
		{"a b c d* e-", "a", "f@f", "add"},
		{"a b c* d e-", "e", "", "remove"},
		{"a b c* d- e-", "e", "", "remove"},
		// Learners by learners, which cost no vote.
		{"a* b- c~", "3", "d@d", "add"},
		{"a* b c~ d~", "3", "d@d", "remove"},
		{"a* b c~-", "3", "", "remove"},
		// A bad copy is no reason to keep it.
		{"a* b c!", "c", "d@d", "add"},
		// Refused.
		{"a* b c", "c", "", "runs and answers"},
		{"a* b c", "c", "c@d", "a name of its own"},
		{"a* b c", "c", "@d", "a name of its own"},
		{"a*- b- c", "a", "", "of the 3 voters only 1 answer and have sound data, 2 are needed; b does not answer"},
		{"a- b*", "a", "", "of the 2 voters only 1"},
		{"a-", "a", "", "last healthy copy"},
		{"a*! b! c-", "c", "", "last healthy copy"},
		{"a* b! c-", "c", "", "b has the alarm CORRUPT"},
		{"a* b- c", "c", "d@d", "of the 3 voters only 2 answer and have sound data, 3 are needed while there is one more; b does not answer"},
		{"a*! b! c", "c", "d@d", "last healthy copy"},
		{"a b* c- d- e", "e", "f@f", "4 are needed"},
		{"a* b c@c?replaces=3?~ d", "d", "", "heals"},
		{"a* b c", "x", "", "no member has the ID or name"},
		{"a* b c?~ d?~", "x", "", "no member has the ID or name"},
		{"a* b c", "3f", "@d", "say the new one's --name"},
		{"a* b c~-", "c", "", "is a learner that does not answer"},
		{"a* b b", "b", "", `2 members have the name "b"`},
	} {
		name, url, _ := strings.Cut(tc.to, "@")
		var urls []string
		if url != "" {
			urls = []string{"http://" + url}
		}
		c := picture(tc.cluster)
		got := ""
		task, err := resolve(c, tc.who, name, urls, false)
		if err == nil {
			if old := c.Member(task.old); old != nil && old.Status == nil {
				if s, err := task.decide(c); s != stepAsk || err != nil {
					t.Errorf("%s: after one look %v, %v", tc.cluster, names[s], err)
				}
			}
			task.silent = silentLooks
			var s step
			s, err = task.decide(c)
			got = names[s]
		}
		if err != nil {
			got = err.Error()
		}
		if got != tc.want && (err == nil || !strings.Contains(got, tc.want)) {
			t.Errorf("%s, %s by %q: %s, want %s", tc.cluster, tc.who, tc.to, got, tc.want)
		}
	}
}

// TestDecideAfterComparing goes on where the new member's data is known to be right.
func TestDecideAfterComparing(t *testing.T) {
	for _, tc := range []struct {
		cluster string
		old     uint64
		want    step
	}{
		{"a* b c d", 3, stepRemove},
		{"a b c* d", 3, stepHandOver},
		{"a* b d", 0, stepDone},
		{"a d*", 1, stepRemove},
	} {
		task := &task{old: tc.old, name: "d", urls: []string{"http://d"}, compared: 7}
		if s, err := task.decide(picture(tc.cluster)); s != tc.want || err != nil {
			t.Errorf("%s: %d, %v, want %d", tc.cluster, s, err, tc.want)
		}
	}
}

// TestGoOn: what is said at an interruption leads to the same task.
func TestGoOn(t *testing.T) {
	c := picture("a* b c-")
	before, err := resolve(c, "c", "", nil, true)
	if err != nil {
		t.Fatal(err)
	}
	r := &Replace{Who: "c", t: before}
	if got := r.GoOn(); got != "3 --name c --peer-urls http://c --learner" {
		t.Errorf("%q", got)
	}
	after, err := resolve(c, "3", "c", []string{"http://c"}, true)
	if err != nil || fmt.Sprint(*after) != fmt.Sprint(*before) {
		t.Errorf("%v, %v: %+v", err, before, after)
	}
}

// TestAlarmsLeft: the alarm of who was replaced is told, that of a member is not.
func TestAlarmsLeft(t *testing.T) {
	t.Parallel()
	c := &Cluster{Members: []*Member{{Member: &pb.Member{ID: 1}}}, Alarms: []*pb.AlarmMember{
		{MemberID: 1, Alarm: pb.AlarmType_NOSPACE}, {MemberID: 2, Alarm: pb.AlarmType_CORRUPT}, {Alarm: pb.AlarmType_CORRUPT},
	}}
	if left := (&Replaced{Old: 2, New: 1, Cluster: c}).Alarms(); len(left) != 1 || left[0].MemberID != 2 {
		t.Errorf("%v", left)
	}
}
