package dev

import (
	"fmt"
	"path/filepath"
	"strings"
)

// Flags are the flags of belay dev as its help has them: --name, and what it is.
func Flags() (flags [][2]string) {
	for line := range strings.Lines(usage) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "  --") || len(words) < 2 {
			continue
		}
		about := words[1:]
		if about[0] == strings.ToUpper(about[0]) { // the value's name
			about = about[1:]
		}
		flags = append(flags, [2]string{words[0], strings.Join(about, " ")})
	}
	return flags
}

// abouts are the commands of `belay dev fault` in a few words, in the order of their completion.
var abouts = [...][2]string{
	{partition, "cut a member off"}, {delay, "slow links"}, {loss, "links that lose packets"}, {disk, "a disk that is slow, stalls or is full"},
	{pause, "stop a member as it is (SIGSTOP)"}, {kill, "end a member as a crash would (SIGKILL)"}, {"heal", "undo what is broken"},
	{"faults", "what is broken"}, {"stop", "stop a member in order"}, {"start", "start a member again"}, {"restart", "stop and start a member"},
	{"status", "which members run"}, {"help", "print what there is"},
}

// CompleteFault are the candidates for the last of the words behind "belay dev fault", with what
// they are.
func CompleteFault(words []string) (candidates [][2]string) {
	dir, typed := defaultDataDir, []string(nil)
	for i, word := range words[:len(words)-1] {
		switch value, given := strings.CutPrefix(word, "--data-dir="); {
		case given:
			dir = value
		case i > 0 && words[i-1] == "--data-dir":
			dir = word
		case !strings.HasPrefix(word, "-"):
			typed = append(typed, word)
		}
	}
	last := words[len(words)-1]
	offer := func(text, about string) {
		if strings.HasPrefix(text, last) {
			candidates = append(candidates, [2]string{text, about})
		}
	}
	members := func(also ...string) {
		if m, err := readMarker(filepath.Join(dir, markerName)); err == nil && m != nil {
			for i := range m.PeerPorts {
				offer(fmt.Sprintf("m%d", i+1), "")
			}
		}
		for _, name := range also {
			offer(name, "")
		}
	}
	switch {
	case strings.HasPrefix(last, "-"):
		offer("--data-dir", "that of the cluster")
		return candidates
	case len(typed) == 0:
		for _, a := range abouts {
			offer(a[0], a[1])
		}
		return candidates
	case typed[len(typed)-1] == "for":
		return nil // a time
	case typed[0] == "faults", typed[0] == "status", typed[0] == "help":
		return nil
	case len(typed) == 1 && typed[0] == "heal":
		members("leader", "follower", "all")
		return candidates
	case len(typed) == 1:
		members("leader", "follower")
		return candidates
	}
	switch typed[0] {
	case partition, delay, loss:
		members("leader")
		offer("one-way", "only what the first says to the others")
	case disk:
		if len(typed) == 2 {
			offer("slow", "each sync takes longer")
			offer("stall", "no sync ends")
			offer("full", "no file gets longer")
			return candidates
		}
		offer("log", "the raft log's alone")
		offer("store", "the store's alone")
	case pause, kill:
	default:
		return nil
	}
	offer("for", "how long, as in 5s")
	return candidates
}
