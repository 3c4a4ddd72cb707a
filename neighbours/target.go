package neighbours

// A Target is a member whose disk is looked at.
type Target struct {
	PID     int      `json:"pid,omitempty"`     // 0: it does not run
	Program string   `json:"program,omitempty"` // etcd, belay
	Dir     string   `json:"dir"`               // of its log, as the process names it
	Disks   []string `json:"disks,omitempty"`   // that Dir is on, as /proc/diskstats names them
	Numbers []string `json:"-"`                 // of these, MAJOR:MINOR
}
