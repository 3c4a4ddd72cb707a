package config

import (
	"fmt"
	"strings"
)

// Write is a configuration in one of the forms, with a comment before each setting.
func Write(form Form, o Options, m Measured) (string, error) {
	lines := Plan(o, m)
	var b strings.Builder
	head := fmt.Sprintf("%s, member %s of %d. Printed by `belay doctor config`.", o.For, o.Self, len(o.Members))
	comment := func(indent, text string) { fmt.Fprintf(&b, "%s# %s\n", indent, text) }
	comment("", head)
	for _, missing := range m.Missing {
		comment("", "not measured: "+missing)
	}
	switch form {
	case Env:
		for _, l := range lines {
			comment("", l.Reason)
			fmt.Fprintf(&b, "%s=%s\n", variableOf(l.Name), l.Value)
		}
	case Unit:
		program := "/usr/local/bin/etcd"
		if o.For == ForBelay {
			program = "/usr/local/bin/belay server"
		}
		fmt.Fprintf(&b, "[Unit]\nDescription=%s\n# addresses must be there before it listens on them\nAfter=network-online.target\nWants=network-online.target\n\n[Service]\n", o.For)
		comment("", "it says when it serves; a start may have to read much data")
		b.WriteString("Type=notify\nTimeoutStartSec=15min\n")
		comment("", "a user of its own, who owns the data directory")
		fmt.Fprintf(&b, "User=%s\n", o.For)
		for _, l := range lines {
			comment("", l.Reason)
			fmt.Fprintf(&b, "Environment=%s=%s\n", variableOf(l.Name), l.Value)
		}
		fmt.Fprintf(&b, "ExecStart=%s\n", program)
		comment("", "a member that ended stays away otherwise, and the next failure may cost the quorum")
		b.WriteString("Restart=always\nRestartSec=5\n")
		comment("", "each client, watch and file takes one; systemd's default is 1024")
		b.WriteString("LimitNOFILE=65536\n")
		comment("", "its share of a busy disk and CPU, of 100 that others have")
		b.WriteString("IOWeight=500\nCPUWeight=500\n\n[Install]\nWantedBy=multi-user.target\n")
	case YAML:
		inner := map[string][]Line{}
		for _, l := range lines {
			section, key := sectionOf(l.Name)
			if section != "" {
				inner[section] = append(inner[section], Line{key, l.Value, l.Reason})
				continue
			}
			comment("", l.Reason)
			fmt.Fprintf(&b, "%s: %s\n", l.Name, scalar(l))
		}
		for _, section := range []string{"client-transport-security", "peer-transport-security"} {
			if len(inner[section]) == 0 {
				continue
			}
			fmt.Fprintf(&b, "%s:\n", section)
			for _, l := range inner[section] {
				comment("  ", l.Reason)
				fmt.Fprintf(&b, "  %s: %s\n", l.Name, scalar(l))
			}
		}
	case Kubeadm:
		if o.For != ForEtcd {
			return "", fmt.Errorf("kubeadm starts etcd: --for etcd")
		}
		b.WriteString("apiVersion: kubeadm.k8s.io/v1beta4\nkind: ClusterConfiguration\netcd:\n  local:\n")
		comment("    ", lines[1].Reason)
		fmt.Fprintf(&b, "    dataDir: %s\n    extraArgs:\n", o.DataDir)
		for _, l := range lines {
			if setByKubeadm(l.Name) {
				continue
			}
			comment("    ", l.Reason)
			fmt.Fprintf(&b, "    - name: %s\n      value: %q\n", l.Name, l.Value)
		}
	default:
		return "", fmt.Errorf("form %q: yaml, systemd, env or kubeadm", form)
	}
	return b.String(), nil
}

func variableOf(flag string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// sectionOf is where a flag stands in the file of --config-file.
func sectionOf(flag string) (section, key string) {
	switch key := strings.TrimPrefix(flag, "peer-"); key {
	case "cert-file", "key-file", "client-cert-auth", "trusted-ca-file":
		if key != flag {
			return "peer-transport-security", key
		}
		return "client-transport-security", key
	}
	return "", flag
}

// scalar is a value in YAML: numbers and truth values as they are, text in quotes.
func scalar(l Line) string {
	switch l.Name {
	case "heartbeat-interval", "election-timeout", "quota-backend-bytes", "client-cert-auth":
		return l.Value
	}
	return fmt.Sprintf("%q", l.Value)
}

// setByKubeadm are the flags that kubeadm sets itself.
func setByKubeadm(flag string) bool {
	switch flag {
	case "heartbeat-interval", "election-timeout", "quota-backend-bytes", "auto-compaction-mode", "auto-compaction-retention", "log-level", "wal-dir":
		return false
	}
	return true
}
