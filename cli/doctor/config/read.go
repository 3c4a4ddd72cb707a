package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"go.yaml.in/yaml/v3"

	server "github.com/belaydb/belay/config"
)

// A Form is what a configuration is written as.
type Form string

const (
	Unit     Form = "systemd"  // a unit of systemd
	Manifest Form = "manifest" // a pod of Kubernetes, or what has a template for one
	Kubeadm  Form = "kubeadm"  // a ClusterConfiguration of kubeadm
	YAML     Form = "yaml"     // the file of --config-file
	Env      Form = "env"      // variables, a line each
)

// A Setting is one flag's value.
type Setting struct {
	Name  string // of the flag, without dashes
	Value string
	Line  int  // from 1; 0: unknown
	Flag  bool // given as a flag, which a server refuses if it does not know it; else a variable, or a key of a file
	// Variable is set for ETCD_NAME=value.
	Variable bool
}

// A File is a configuration that was read.
type File struct {
	Form     Form
	Settings []Setting
	// Unit has the options of [Unit] and [Service] of a unit, the last of each name.
	Unit map[string]string
	// Probe is the path that a manifest's livenessProbe asks; HasCPU and Critical that the container
	// asks for CPU, and that the pod has a system priority.
	Probe            string
	ProbeLine        int
	HasCPU, Critical bool
	// EnvFiles are files of variables that a unit names.
	EnvFiles []string
}

// Read reads a configuration in any form.
func Read(text []byte) (*File, error) {
	if bytes.Contains(text, []byte("[Service]")) {
		return readUnit(text)
	}
	if f, ok := readEnv(text); ok {
		return f, nil
	}
	return readYAML(text)
}

// lineWith is the number of the first line that has part; 0: none.
func lineWith(text []byte, part string) int {
	at := bytes.Index(text, []byte(part))
	if at < 0 {
		return 0
	}
	return 1 + bytes.Count(text[:at], []byte("\n"))
}

func readUnit(text []byte) (*File, error) {
	options, err := unit.DeserializeOptions(bytes.NewReader(text))
	if err != nil {
		return nil, fmt.Errorf("a systemd unit that cannot be read: %w", err)
	}
	f := &File{Form: Unit, Unit: map[string]string{}}
	started := false
	for _, o := range options {
		f.Unit[o.Name] = o.Value
		switch o.Name {
		case "ExecStart":
			started = true
			for _, w := range flagsOf(words(o.Value)) {
				w.Line = lineWith(text, "-"+w.Name)
				f.Settings = append(f.Settings, w)
			}
		case "Environment":
			for _, word := range words(o.Value) {
				if s, ok := variable(word); ok {
					s.Line = lineWith(text, strings.SplitN(word, "=", 2)[0]+"=")
					f.Settings = append(f.Settings, s)
				}
			}
		case "EnvironmentFile":
			f.EnvFiles = append(f.EnvFiles, strings.TrimPrefix(o.Value, "-"))
		}
	}
	if !started {
		return nil, errors.New("a systemd unit without ExecStart=")
	}
	return f, nil
}

// words splits a command line as systemd does: at spaces, but for those in quotes.
func words(line string) (all []string) {
	var word strings.Builder
	quote, in := byte(0), false
	flush := func() {
		if in {
			all = append(all, word.String())
		}
		word.Reset()
		in = false
	}
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, in = c, true
		case c == '\\' && i+1 < len(line):
			i++
			if line[i] == '\n' || line[i] == '\r' {
				if quote == 0 {
					flush()
				}
				continue
			}
			word.WriteByte(line[i])
			in = true
		case quote == 0 && strings.IndexByte(" \t\r\n", c) >= 0:
			flush()
		default:
			word.WriteByte(c)
			in = true
		}
	}
	flush()
	return all
}

// flagsOf are the flags of a command line: -name value, --name=value, and --name alone for true.
func flagsOf(words []string) (all []Setting) {
	for i := 0; i < len(words); i++ {
		if !strings.HasPrefix(words[i], "-") || strings.Trim(words[i], "-") == "" {
			continue
		}
		name, value, has := strings.Cut(strings.TrimLeft(words[i], "-"), "=")
		if !has {
			value = "true"
			if i+1 < len(words) && !strings.HasPrefix(words[i+1], "-") && !slices.Contains(booleans(), name) {
				i++
				value = words[i]
			}
		}
		all = append(all, Setting{Name: name, Value: value, Flag: true})
	}
	return all
}

// booleans are the flags that take no word behind them: a server's, and those of older etcds.
func booleans() []string { return append(server.Booleans(), "version", "help", "enable-v2", "debug") }

// variable is ETCD_NAME=value.
func variable(text string) (s Setting, ok bool) {
	name, value, ok := strings.Cut(text, "=")
	rest, etcd := strings.CutPrefix(strings.TrimSpace(name), "ETCD_")
	if !ok || !etcd || rest == "" {
		return s, false
	}
	return Setting{Name: strings.ToLower(strings.ReplaceAll(rest, "_", "-")), Value: value, Variable: true}, true
}

// readEnv reads lines NAME=value; ok is false if there are others.
func readEnv(text []byte) (*File, bool) {
	f := &File{Form: Env}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.ContainsAny(name, " :{") || strings.HasPrefix(name, "-") {
			return nil, false
		}
		if v := words(value); len(v) > 0 {
			value = v[0]
		}
		if s, ok := variable(name + "=" + value); ok {
			s.Line = i + 1
			f.Settings = append(f.Settings, s)
		}
	}
	return f, len(f.Settings) > 0
}

func readYAML(text []byte) (*File, error) {
	var found *File
	decoder := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := decoder.Decode(&doc)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("neither a systemd unit, nor variables, nor YAML: %w", err)
		}
		if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
			continue
		}
		root := doc.Content[0]
		f := &File{Form: YAML}
		kind := child(root, "kind")
		switch {
		case kind != nil && kind.Value == "ClusterConfiguration":
			f.Form = Kubeadm
			f.readKubeadm(child(child(child(root, "etcd"), "local"), "extraArgs"))
		case kind != nil:
			f.Form = Manifest
			spec := child(root, "spec")
			if t := child(child(spec, "template"), "spec"); t != nil {
				spec = t
			}
			if !f.readPod(spec) {
				continue // a Service, or another program's
			}
		default:
			f.readKeys(root, "")
		}
		if found == nil {
			found = f
		}
	}
	if found == nil || found.Form != Kubeadm && len(found.Settings) == 0 {
		return nil, errors.New("no configuration of etcd or Belay: neither a systemd unit, a Kubernetes manifest, a kubeadm configuration, variables ETCD_*, nor the file of --config-file")
	}
	return found, nil
}

// child is the value of a key of a mapping; nil if there is none.
func child(n *yaml.Node, key string) *yaml.Node {
	if n == nil || n.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == key {
			return n.Content[i+1]
		}
	}
	return nil
}

// readKubeadm reads extraArgs, a mapping in v1beta3 and a list of names and values since v1beta4.
func (f *File) readKubeadm(args *yaml.Node) {
	if args == nil {
		return
	}
	if args.Kind == yaml.SequenceNode {
		for _, one := range args.Content {
			if name, value := child(one, "name"), child(one, "value"); name != nil && value != nil {
				f.Settings = append(f.Settings, Setting{Name: name.Value, Value: value.Value, Line: name.Line, Flag: true})
			}
		}
		return
	}
	for i := 0; i+1 < len(args.Content); i += 2 {
		f.Settings = append(f.Settings, Setting{Name: args.Content[i].Value, Value: args.Content[i+1].Value, Line: args.Content[i].Line, Flag: true})
	}
}

// readPod reads the first container that runs etcd or Belay.
func (f *File) readPod(spec *yaml.Node) bool {
	containers := child(spec, "containers")
	if containers == nil {
		return false
	}
	for _, c := range containers.Content {
		var nodes []*yaml.Node
		for _, key := range []string{"command", "args"} {
			if list := child(c, key); list != nil {
				nodes = append(nodes, list.Content...)
			}
		}
		image, name := child(c, "image"), child(c, "name")
		is := func(n *yaml.Node) bool {
			return n != nil && (strings.Contains(n.Value, "etcd") || strings.Contains(n.Value, "belay"))
		}
		if !is(image) && !is(name) && (len(nodes) == 0 || !is(nodes[0])) {
			continue
		}
		for i := 0; i < len(nodes); i++ {
			line := nodes[i].Line
			list := words(nodes[i].Value) // a shell's whole command line, or one argument
			if i+1 < len(nodes) && len(list) == 1 && strings.HasPrefix(list[0], "-") && !strings.Contains(list[0], "=") && !strings.HasPrefix(nodes[i+1].Value, "-") {
				list = append(list, nodes[i+1].Value)
			}
			for _, s := range flagsOf(list) {
				s.Line = line
				f.Settings = append(f.Settings, s)
			}
		}
		if env := child(c, "env"); env != nil {
			for _, e := range env.Content {
				name, value := child(e, "name"), child(e, "value")
				if name == nil || value == nil {
					continue
				}
				if s, ok := variable(name.Value + "=" + value.Value); ok {
					s.Line = name.Line
					f.Settings = append(f.Settings, s)
				}
			}
		}
		f.HasCPU = child(child(child(c, "resources"), "requests"), "cpu") != nil
		if path := child(child(child(c, "livenessProbe"), "httpGet"), "path"); path != nil {
			f.Probe, f.ProbeLine = path.Value, path.Line
		}
		class := child(spec, "priorityClassName")
		f.Critical = class != nil && strings.HasPrefix(class.Value, "system-")
		return len(f.Settings) > 0
	}
	return false
}

// sections are the keys of --config-file that hold others, and what their keys' flags begin with.
func sections() map[string]string {
	return map[string]string{"client-transport-security": "", "peer-transport-security": "peer-", "discovery-config": "discovery-", "socket-options": "socket-"}
}

// readKeys reads the file of --config-file. Keys of sections get the names of their flags.
func (f *File) readKeys(n *yaml.Node, prefix string) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if inner, ok := sections()[key.Value]; ok && value.Kind == yaml.MappingNode {
			f.readKeys(value, inner)
			continue
		}
		text := value.Value
		if value.Kind == yaml.SequenceNode {
			var list []string
			for _, v := range value.Content {
				list = append(list, v.Value)
			}
			text = strings.Join(list, ",")
		}
		f.Settings = append(f.Settings, Setting{Name: prefix + key.Value, Value: text, Line: key.Line})
	}
}
