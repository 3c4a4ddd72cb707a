package check

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/belaydb/belay/proof/cluster"
)

// diagnosis is what the check reads of `belay doctor -o json`.
type diagnosis struct {
	Blind    bool `json:"blind"`
	Findings []struct{ ID, Severity, Member, What string }
	Data     struct {
		Members []struct {
			Name   string
			Leader bool
			Belay  bool
		}
	}
}

// has tells whether there is a finding of that id that is no good news, at a member or at any ("").
func (d diagnosis) has(id, member string) bool {
	for _, f := range d.Findings {
		if f.ID == id && f.Severity != "good" && (member == "" || f.Member == member) {
			return true
		}
	}
	return false
}

func doctor(t *testing.T, args ...string) (d diagnosis, code int) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), Belay(t), append([]string{"doctor", "-o", "json"}, args...)...).Output()
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(out, &d); err != nil {
		t.Fatalf("doctor %v prints no JSON (code %d): %v\n%s", args, code, err, out)
	}
	return d, code
}

// TestDoctor has doctor look at three members of each kind: well, with one of them dead, and
// without a quorum.
func TestDoctor(t *testing.T) {
	for _, kind := range []cluster.Kind{cluster.Belay, cluster.Etcd} {
		t.Run(fmt.Sprint(kind), func(t *testing.T) {
			t.Parallel()
			binary := Belay(t)
			if kind == cluster.Etcd {
				binary = EtcdTools(t).Etcd
			}
			c := startCluster(t, cluster.Config{Kind: kind, Size: 3, Binary: binary, Dir: t.TempDir()})
			cli, err := clientv3.New(clientv3.Config{Endpoints: c.Endpoints(), DialTimeout: 10 * time.Second})
			if err != nil {
				t.Fatal(err)
			}
			defer cli.Close()
			for i := range 50 {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				if _, err := cli.Put(ctx, fmt.Sprint("key", i), "v"); err != nil {
					t.Fatal(err)
				}
				cancel()
			}

			// One endpoint is enough to find the others. How fast a disk or a link is here is the
			// machine's affair.
			d, code := doctor(t, "--endpoints", c.Members[0].ClientURL, "--between", "1s", "--command-timeout", "20s")
			if code > 2 || d.Blind || len(d.Data.Members) != 3 {
				t.Fatalf("code %d: %+v", code, d)
			}
			leaders := 0
			for _, m := range d.Data.Members {
				if m.Leader {
					leaders++
				}
				if m.Belay != (kind == cluster.Belay) {
					t.Errorf("%s is taken for Belay's: %v", m.Name, m.Belay)
				}
			}
			if leaders != 1 {
				t.Errorf("%d leaders", leaders)
			}
			for _, id := range []string{"member-unreachable", "no-leader", "alarm", "proposals", "quota", "version", "membership-single", "membership-even", "descriptors", "nobody-answers"} {
				if d.has(id, "") {
					t.Errorf("of a cluster that is well: %s: %+v", id, d.Findings)
				}
			}
			if !d.has("membership-one-machine", "") {
				t.Error("nothing is said of members that share a machine")
			}

			dead := c.Members[2]
			if err := dead.Kill(); err != nil {
				t.Fatal(err)
			}
			// Somebody's list of endpoints has a member of another cluster.
			alone := startCluster(t, cluster.Config{Kind: kind, Size: 1, Binary: binary, Dir: t.TempDir()})
			d, code = doctor(t, "--endpoints", c.Members[0].ClientURL+","+alone.Members[0].ClientURL, "--between", "0s", "--command-timeout", "3s")
			if code != 2 || !d.has("membership-other-cluster", "") || len(d.Data.Members) != 3 {
				t.Errorf("with an endpoint of another cluster: code %d, %+v", code, d)
			}
			d, code = doctor(t, "--endpoints", c.Members[0].ClientURL, "--between", "0s", "--command-timeout", "3s")
			if code == 0 || !d.has("member-unreachable", dead.Name) || d.has("member-unreachable", c.Members[0].Name) {
				t.Errorf("with %s dead: code %d, %+v", dead.Name, code, d.Findings)
			}

			if err := c.Members[1].Kill(); err != nil {
				t.Fatal(err)
			}
			d, code = doctor(t, "--endpoints", c.Members[0].ClientURL, "--between", "0s", "--command-timeout", "3s")
			if code != 2 || !d.has("member-unreachable", c.Members[1].Name) {
				t.Errorf("without a quorum: code %d, %+v", code, d.Findings)
			}
			text, _ := exec.CommandContext(t.Context(), Belay(t), "doctor", "--endpoints", c.Members[0].ClientURL, "--between", "0s", "--command-timeout", "3s").CombinedOutput()
			if !strings.Contains(strings.Join(strings.Fields(string(text)), " "), "has no quorum") {
				t.Errorf("without a quorum it says:\n%s", text)
			}
		})
	}
}
