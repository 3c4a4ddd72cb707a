package clients

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/belaydb/belay/proof/cluster"
)

// TestPatroni has two Patronis, as Debian ships them, elect a leader among two PostgreSQL servers
// through Belay's JSON gateway; Belay's own leader is killed, and then PostgreSQL's.
func TestPatroni(t *testing.T) {
	wantAll(t)
	program := tool(t, "patroni", "patroni")
	bin := postgresBin(t)
	for _, e := range []entry{{1, plain}, {3, plain}, {3, secured}} {
		t.Run(e.String(), func(t *testing.T) {
			if e.in.tls {
				wantPython(t, program, "idna", "python3-idna")
			}
			d := enter(t, e, "/service/")
			ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
			defer cancel()
			nodes := []*patroni{newPatroni(t, program, bin, d, "pg1"), newPatroni(t, program, bin, d, "pg2")}
			nodes[0].start(t)
			first := awaitLeader(ctx, t, nodes[:1])
			nodes[1].start(t)
			awaitCluster(ctx, t, nodes, first, 2)
			t.Logf("%s leads, the other follows", first.name)

			failover(ctx, t, d.Cluster)
			awaitCluster(ctx, t, nodes, first, 2)
			t.Log("so it stays when Belay's leader is lost")

			first.kill()
			var rest []*patroni
			for _, n := range nodes {
				if n != first {
					rest = append(rest, n)
				}
			}
			second := awaitLeader(ctx, t, rest)
			t.Logf("%s took over after the leader's end", second.name)
		})
	}
}

// wantPython skips a test when the interpreter of a script lacks a module.
func wantPython(t *testing.T, script, module, debian string) {
	t.Helper()
	text, err := os.ReadFile(script)
	if err != nil {
		t.Fatal(err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	interpreter := strings.Fields(strings.TrimPrefix(line, "#!"))
	if len(interpreter) == 0 {
		t.Fatalf("%s begins with %q", script, line)
	}
	if err := exec.Command(interpreter[0], append(interpreter[1:], "-c", "import "+module)...).Run(); err != nil {
		t.Skipf("Python's module %s is not installed; on Debian it is in the package %s", module, debian)
	}
}

// patroni is one Patroni and its PostgreSQL.
type patroni struct {
	name, program, config, dir string
	rest                       string // base URL of its REST API
	cmd                        *exec.Cmd
	log                        *os.File
	attr                       *syscall.SysProcAttr
}

// postgresBin returns the folder of the newest PostgreSQL's programs.
func postgresBin(t *testing.T) string {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if len(found) == 0 {
		t.Skip("PostgreSQL is not installed; on Debian it is in the package postgresql")
	}
	return filepath.Dir(found[len(found)-1])
}

func newPatroni(t *testing.T, program, bin string, d *door, name string) *patroni {
	// Not t.TempDir: PostgreSQL refuses to run as root, and another user cannot enter that.
	dir, err := os.MkdirTemp("", "belay-patroni-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &patroni{name: name, program: program, dir: dir, config: filepath.Join(dir, "patroni.yml"), attr: &syscall.SysProcAttr{Setpgid: true}}
	own := func(string) {}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("running as root, and there is no user postgres to run PostgreSQL")
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		p.attr.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		own = func(path string) {
			if err := os.Chown(path, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
	}
	own(dir)
	entrance := ""
	if d.ca != nil {
		entrance += ", protocol: https"
		// The gateway refuses certificates with a common name, on any server.
		for key, file := range map[string]string{"cacert": d.ca.CA(), "cert": d.ca.Cert("nameless"), "key": d.ca.Key("nameless")} {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			copied := filepath.Join(dir, filepath.Base(file))
			if err := os.WriteFile(copied, data, 0o600); err != nil {
				t.Fatal(err)
			}
			own(copied)
			entrance += fmt.Sprintf(", %s: %q", key, copied)
		}
	}
	if d.user != "" {
		entrance += fmt.Sprintf(", username: %q, password: %q", d.user, d.password)
	}
	var ports [2]int
	for i := range ports {
		if ports[i], err = cluster.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	p.rest = fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	config := fmt.Sprintf(`scope: belay
name: %s
restapi: {listen: "127.0.0.1:%d", connect_address: "127.0.0.1:%d"}
etcd3: {hosts: "%s"%s}
bootstrap:
  dcs: {ttl: 20, loop_wait: 2, retry_timeout: 5, maximum_lag_on_failover: 1048576, postgresql: {use_pg_rewind: false}}
  initdb: [{encoding: UTF8}, {locale: C}]
  pg_hba: ["host replication replicator 127.0.0.1/32 trust", "host all all 127.0.0.1/32 trust"]
postgresql:
  listen: "127.0.0.1:%d"
  connect_address: "127.0.0.1:%d"
  data_dir: %s/data
  bin_dir: %s
  pgpass: %s/pgpass
  authentication: {replication: {username: replicator, password: rep}, superuser: {username: postgres, password: pw}}
  parameters: {unix_socket_directories: "%s", shared_buffers: 16MB}
`, name, ports[0], ports[0], strings.Join(d.Endpoints(), ","), entrance, ports[1], ports[1], dir, bin, dir, dir)
	if err := os.WriteFile(p.config, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	if p.log, err = os.Create(filepath.Join(dir, "log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill()
		p.log.Close()
		if t.Failed() {
			text, _ := os.ReadFile(p.log.Name())
			t.Logf("%s: %s", name, text[max(0, len(text)-4000):])
		}
	})
	return p
}

func (p *patroni) start(t *testing.T) {
	p.cmd = exec.Command(p.program, p.config)
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr, p.cmd.SysProcAttr = p.dir, p.log, p.log, p.attr
	p.cmd.Env = append(os.Environ(), "HOME="+p.dir)
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
}

// kill ends Patroni and its PostgreSQL at once.
func (p *patroni) kill() {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	// The postmaster has a group of its own; its process ID is the first line.
	if text, err := os.ReadFile(filepath.Join(p.dir, "data", "postmaster.pid")); err == nil {
		line, _, _ := strings.Cut(string(text), "\n")
		if pid, err := strconv.Atoi(line); err == nil && pid > 1 {
			_ = syscall.Kill(pid, syscall.SIGQUIT) // immediate shutdown
		}
	}
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	_ = p.cmd.Wait() // killed
	p.cmd = nil
}

// leads asks a Patroni whether its server is the leader.
func (p *patroni) leads(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.rest+"/leader", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// members counts the running members that a Patroni sees in the store.
func (p *patroni) members(ctx context.Context) int {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.rest+"/cluster", nil)
	if err != nil {
		return 0
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	var list struct{ Members []struct{ State string } }
	if err != nil || json.Unmarshal(text, &list) != nil {
		return 0
	}
	running := 0
	for _, m := range list.Members {
		if m.State == "running" || m.State == "streaming" {
			running++
		}
	}
	return running
}

func awaitLeader(ctx context.Context, t *testing.T, nodes []*patroni) *patroni {
	t.Helper()
	for ctx.Err() == nil {
		for _, p := range nodes {
			if p.leads(ctx) {
				return p
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal("nobody leads")
	return nil
}

// awaitCluster waits until leader leads and all see each other running.
func awaitCluster(ctx context.Context, t *testing.T, nodes []*patroni, leader *patroni, running int) {
	t.Helper()
	for ctx.Err() == nil {
		good := leader.leads(ctx)
		for _, p := range nodes {
			good = good && p.members(ctx) == running
		}
		if good {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("%s does not lead %d running servers", leader.name, running)
}
