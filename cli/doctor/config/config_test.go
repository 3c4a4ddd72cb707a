package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/belaydb/belay/cli/doctor/report"
)

func three(of string) Options {
	return Options{
		For: of, Self: "m2", Members: []Member{{"m1", "10.0.0.1"}, {"m2", "10.0.0.2"}, {"m3", "10.0.0.3"}}, DataDir: "/var/lib/" + of,
		CertDir: "/etc/pki", Token: "t", ClientPort: 2379, PeerPort: 2380, MetricsPort: 2381,
	}
}

func check(t *testing.T, text, of string) *report.Report {
	t.Helper()
	f, err := Read([]byte(text))
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	return Check(f, "x", of, Host{}, time.Time{})
}

func ids(r *report.Report) (all []string) {
	for _, f := range r.Findings {
		all = append(all, f.ID)
	}
	return all
}

// TestOwn holds that what is printed passes the check, in each form, for both servers, measured or not;
// and that each setting has a reason before it.
func TestOwn(t *testing.T) {
	measured := Measured{RTT: 120 * time.Millisecond, RTTOf: "10.0.0.3", Sync: 400 * time.Millisecond, Writes: 500, Memory: 8 << 30, Free: 100 << 30, Missing: []string{"the round trip to 10.0.0.9"}}
	for _, of := range []string{ForEtcd, ForBelay} {
		for _, m := range []Measured{{}, measured} {
			for form, want := range map[Form]Form{YAML: YAML, Unit: Unit, Env: Env, Kubeadm: Kubeadm} {
				o := three(of)
				o.WALDir, o.Kubernetes = "/var/lib/wal", form == Kubeadm
				if form == Kubeadm && of == ForBelay {
					continue
				}
				if err := o.Validate(); err != nil {
					t.Fatal(err)
				}
				text, err := Write(form, o, m)
				if err != nil {
					t.Fatal(err)
				}
				f, err := Read([]byte(text))
				if err != nil || f.Form != want {
					t.Fatalf("%s for %s is read as %v, %v:\n%s", form, of, f, err, text)
				}
				if r := Check(f, "x", of, Host{MemoryBytes: m.Memory}, time.Time{}); r.ExitCode() != report.CodeGood {
					t.Errorf("%s for %s: %+v\n%s", form, of, r.Findings, text)
				}
				for _, l := range Plan(o, m) {
					if l.Reason == "" || strings.Contains(l.Reason, "%!") {
						t.Errorf("%s has the reason %q", l.Name, l.Reason)
					}
					if !strings.Contains(text, "# "+l.Reason+"\n") && form != Kubeadm {
						t.Errorf("%s for %s does not say %q", form, of, l.Reason)
					}
				}
			}
		}
	}
	text, err := Write(YAML, three(ForEtcd), measured)
	for _, part := range []string{"heartbeat-interval: 180", "election-timeout: 5200", "measured: 120 ms to 10.0.0.3", "quota-backend-bytes: 4294967296", "p99 400 ms of 500, which is slow"} {
		if err != nil || !strings.Contains(text, part) {
			t.Errorf("it does not say %q: %v\n%s", part, err, text)
		}
	}
	if text, err := Write(YAML, three(ForBelay), Measured{}); err != nil || strings.Contains(text, "election-timeout") {
		t.Errorf("Belay's timers are set, so that it does not tune them: %v\n%s", err, text)
	}
}

func TestValidate(t *testing.T) {
	for _, change := range []func(*Options){
		func(o *Options) { o.Members = o.Members[:2] }, func(o *Options) { o.Members = nil }, func(o *Options) { o.Self = "m9" }, func(o *Options) { o.CertDir = "" },
		func(o *Options) { o.DataDir = "data" }, func(o *Options) { o.DataDir = "/a b" }, func(o *Options) { o.For = "consul" }, func(o *Options) { o.Members[0].Host = "" },
		func(o *Options) { o.Members[1].Host = "a\nb" },
	} {
		o := three(ForEtcd)
		change(&o)
		if err := o.Validate(); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

const good = "name: m1\ninitial-cluster: m1=https://10.0.0.1:2380,m2=https://10.0.0.2:2380,m3=https://10.0.0.3:2380\ninitial-advertise-peer-urls: https://10.0.0.1:2380\nlisten-peer-urls: https://10.0.0.1:2380\n" +
	"listen-client-urls: https://10.0.0.1:2379\nadvertise-client-urls: https://10.0.0.1:2379\nquota-backend-bytes: 8589934592\nauto-compaction-retention: 1h\ndata-dir: /var/lib/etcd\n" +
	"client-transport-security:\n  cert-file: /a\n  key-file: /b\n  client-cert-auth: true\n  trusted-ca-file: /c\npeer-transport-security:\n  cert-file: /a\n  key-file: /b\n  client-cert-auth: true\n  trusted-ca-file: /c\n"

// TestFindings changes one thing of a file that is well, each time.
func TestFindings(t *testing.T) {
	if r := check(t, good, ForEtcd); !slices.Equal(ids(r), []string{"config-good"}) {
		t.Fatalf("a good file: %+v", r.Findings)
	}
	for _, tc := range []struct {
		old, now string // "": added
		id       string
		severity report.Severity
		evidence string
	}{
		{"", "heartbeat-interval: 1\nelection-timeout: 10", "config-timer-units", report.Critical, "line 20: heartbeat-interval: 1"},
		{"", "heartbeat-interval: 100ms", "config-timer-units", report.Critical, "line 20"},
		{"", "election-timeout: 100000", "config-timer-units", report.Critical, "line 20"},
		{"", "heartbeat-interval: 300", "config-election-ratio", report.Critical, "line 20"},
		{"", "heartbeat-interval: 150", "config-election-ratio", report.Warning, "line 20"},
		{"", "heartbeat-interval: 2000\nelection-timeout: 20000", "config-timers-long", report.Warning, "line 20"},
		{",m3=https://10.0.0.3:2380", "", "config-members-even", report.Warning, "line 2"},
		{"m3=https://10.0.0.3", "m3=https://10.0.0.2", "config-members-one-host", report.Warning, "line 2"},
		{"name: m1", "name: m4", "config-member-missing", report.Critical, "line 1: name: m4"},
		{"initial-advertise-peer-urls: https://10.0.0.1", "initial-advertise-peer-urls: https://10.0.0.7", "config-member-missing", report.Critical, "line 3"},
		{"m2=https", "m2=http", "config-urls-mixed", report.Critical, "line 4"},
		{"listen-client-urls: https", "listen-client-urls: http", "config-urls-mixed", report.Critical, "line 5"},
		{"advertise-client-urls: https://10.0.0.1", "advertise-client-urls: https://0.0.0.0", "config-advertise", report.Warning, "line 6"},
		{"listen-peer-urls: https://10.0.0.1:2380", "listen-peer-urls: 10.0.0.1:2380", "config-url", report.Critical, "line 4"},
		{"client-cert-auth: true", "client-cert-auth: false", "config-client-auth", report.Warning, "line 5"},
		{"  trusted-ca-file: /c\npeer", "peer", "config-client-auth", report.Critical, "line 13: client-cert-auth: true"},
		{"  cert-file: /a\n", "", "config-no-certificate", report.Critical, "line 5"},
		{"", "listen-metrics-urls: http://0.0.0.0:2381", "config-metrics-open", report.Warning, "line 20"},
		{"", "enable-pprof: true", "config-pprof", report.Warning, "line 20"},
		{"quota-backend-bytes: 8589934592\n", "", "config-quota", report.Warning, ""},
		{"8589934592", "17179869184", "config-quota", report.Warning, "line 7"},
		{"8589934592", "8GB", "config-quota", report.Critical, "line 7"},
		{"8589934592", "8192", "config-quota", report.Warning, "line 7"},
		{"auto-compaction-retention: 1h\n", "", "config-no-compaction", report.Warning, ""},
		{"auto-compaction-retention: 1h", "auto-compaction-retention: 0", "config-no-compaction", report.Warning, "line 8"},
		{"auto-compaction-retention: 1h", "auto-compaction-retention: \"3600\"", "config-compaction-units", report.Warning, "line 8"},
		{"auto-compaction-retention: 1h", "auto-compaction-mode: revision\nauto-compaction-retention: 10", "config-compaction-short", report.Warning, "line 9"},
		{"", "snapshot-count: 10", "config-snapshot-count", report.Warning, "line 20"},
		{"", "snapshot-count: 5000000", "config-snapshot-count", report.Warning, "line 20"},
		{"", "max-request-bytes: 104857600", "config-request-size", report.Warning, "line 20"},
		{"", "force-new-cluster: true", "config-force-new-cluster", report.Critical, "line 20"},
		{"", "unsafe-no-fsync: true", "config-no-fsync", report.Critical, "line 20"},
		{"", "log-level: debug", "config-debug", report.Warning, "line 20"},
		{"", "pre-vote: false", "config-pre-vote", report.Warning, "line 20"},
		{"/var/lib/etcd", "/tmp/etcd", "config-data-dir", report.Critical, "line 9"},
		{"/var/lib/etcd", "etcd", "config-data-dir", report.Warning, "line 9"},
		{"", "hartbeat-interval: 100", "config-flag-unknown", report.Warning, "line 20"},
		{"", "enable-v2: true", "config-flag-gone", report.Warning, "line 20"},
		{"", "experimental-corrupt-check-time: 1m", "config-flag-gone", report.Warning, "line 20"},
		{"", "max-key-bytes: 100", "config-flag-unknown", report.Warning, "line 20"},
	} {
		text := good + tc.now + "\n"
		if tc.old != "" {
			text = strings.Replace(good, tc.old, tc.now, 1)
			if text == good {
				t.Fatalf("the file has no %q", tc.old)
			}
		}
		r := check(t, text, ForEtcd)
		if len(r.Findings) != 1 || r.Findings[0].ID != tc.id || r.Findings[0].Severity != tc.severity {
			t.Errorf("%q to %q: %v %+v", tc.old, tc.now, ids(r), r.Findings)
			continue
		}
		if !strings.HasPrefix(strings.Join(r.Findings[0].Evidence, "; "), tc.evidence) || r.Findings[0].What == "" || r.Findings[0].Why == "" {
			t.Errorf("%q to %q: %+v", tc.old, tc.now, r.Findings[0])
		}
	}
	if r := check(t, good+"max-key-bytes: 100\n", ForBelay); r.ExitCode() != report.CodeGood {
		t.Errorf("a flag of Belay's: %+v", r.Findings)
	}
	f, err := Read([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	if r := Check(f, "x", ForEtcd, Host{MemoryBytes: 4 << 30, Shares: []string{"/var/log is on sda, too"}}, time.Time{}); !slices.Equal(ids(r), []string{"config-quota", "config-disk-shared"}) {
		t.Errorf("on a small host: %+v", r.Findings)
	}
}

const manifest = `apiVersion: v1
kind: Pod
metadata:
  name: etcd
spec:
  containers:
  - command:
    - etcd
    - --name=m1
    - --data-dir=/var/lib/etcd
    - --heartbeat-interval
    - "1"
    - --quota-backend-bytes=8589934592
    image: registry.k8s.io/etcd:3.6.1-0
    livenessProbe:
      httpGet:
        path: /health
        port: 2381
  - name: other
    command: ["sleep", "--for=ever"]
  priorityClassName: system-node-critical
`

// TestForms has what is wrong in each form that people have, with its line.
func TestForms(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		form       Form
		want       []string // ids and the line of their evidence
	}{
		{"a pod", manifest, Manifest, []string{"config-timer-units 11", "config-probe 17", "config-no-cpu 0"}},
		{"a kubeadm list", "apiVersion: kubeadm.k8s.io/v1beta4\nkind: InitConfiguration\n---\napiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\netcd:\n  local:\n    extraArgs:\n    - name: election-timeout\n      value: \"5\"\n    - name: quota-backend-bytes\n      value: \"8589934592\"\n", Kubeadm, []string{"config-timer-units 9"}},
		{"a kubeadm mapping", "apiVersion: kubeadm.k8s.io/v1beta3\nkind: ClusterConfiguration\netcd:\n  local:\n    extraArgs:\n      unsafe-no-fsync: \"true\"\n      quota-backend-bytes: \"8589934592\"\n", Kubeadm, []string{"config-no-fsync 6"}},
		{"a unit", "[Unit]\nDescription=etcd\n[Service]\nEnvironment=\"ETCD_QUOTA_BACKEND_BYTES=8589934592\" ETCD_AUTO_COMPACTION_RETENTION=1h\nExecStart=/usr/bin/etcd \\\n  --name m1 \\\n  --initial-cluster 'm1=http://127.0.0.1:2380' --auto-tls \\\n  --snapshot-cuont=100\nRestart=always\n", Unit, []string{"config-flag-unknown 8", "config-unit-files 0"}},
		{"variables", "# mine\nexport ETCD_NAME=\"m1\"\nETCD_ELECTION_TIMEOUT=500\nETCD_QUOTA_BACKEND_BYTES='8589934592'\nETCD_AUTO_COMPACTION_RETENTION=1h\nOTHER=1\n", Env, []string{"config-election-ratio 3"}},
		{"twice", "[Service]\nExecStart=/usr/bin/etcd --name=a --name=b --quota-backend-bytes=8589934592 --auto-compaction-retention=1h\nEnvironment=ETCD_NAME=b\nRestart=always\nLimitNOFILE=65536\n", Unit, []string{"config-twice 2", "config-twice 2"}},
	} {
		f, err := Read([]byte(tc.text))
		if err != nil || f.Form != tc.form {
			t.Errorf("%s: %+v, %v", tc.name, f, err)
			continue
		}
		var got []string
		for _, finding := range Check(f, "x", ForEtcd, Host{}, time.Time{}).Findings {
			line := 0
			if len(finding.Evidence) > 0 {
				_, _ = fmt.Sscanf(finding.Evidence[0], "line %d", &line) // 0 if it names none
			}
			got = append(got, fmt.Sprintf("%s %d", finding.ID, line))
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	for _, text := range []string{"", "hello", "a: [", "apiVersion: v1\nkind: Service\n", "[Service]\nType=simple\n", "A=1\n", "\x00\xff"} {
		if f, err := Read([]byte(text)); err == nil {
			t.Errorf("%q is %+v", text, f)
		}
	}
}

func TestNearest(t *testing.T) {
	all := known()
	for _, tc := range []struct{ name, want string }{{"hartbeat-interval", "heartbeat-interval"}, {"snapshot-cuont", "snapshot-count"}, {"listen-client-url", "listen-client-urls"}, {"wombat", ""}} {
		if got := nearest(tc.name, all); got != tc.want {
			t.Errorf("%s: %q, want %q", tc.name, got, tc.want)
		}
	}
	if len(all) < 100 {
		t.Errorf("%d flags are known", len(all))
	}
	for _, name := range own() {
		if !all[name] {
			t.Errorf("Belay has no --%s", name)
		}
	}
}

// TestSpelt: evidence and advice are written as the file that is checked writes settings.
func TestSpelt(t *testing.T) {
	for text, want := range map[string][]string{
		"ETCD_NAME=m1\nETCD_HEARTBEAT_INTERVAL=100ms\nETCD_QUOTA_BACKEND_BYTE=1\n":  {"line 2: ETCD_HEARTBEAT_INTERVAL=100ms", "ETCD_AUTO_COMPACTION_MODE=periodic", "is ETCD_QUOTA_BACKEND_BYTES meant?"},
		"[Service]\nExecStart=/usr/bin/etcd --name m1 --heartbeat-interval=100ms\n": {"line 2: --heartbeat-interval=100ms", "--auto-compaction-mode=periodic"},
		"name: m1\nheartbeat-interval: 100ms\n":                                     {"line 2: heartbeat-interval: 100ms", "auto-compaction-mode: periodic"},
	} {
		f, err := Read([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, finding := range Check(f, "x", ForEtcd, Host{}, time.Now()).Findings {
			all = append(append(all, finding.Evidence...), finding.Do...)
		}
		for _, part := range want {
			if !strings.Contains(strings.Join(all, "\n"), part) {
				t.Errorf("no %q in %q", part, all)
			}
		}
	}
}
