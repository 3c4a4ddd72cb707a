// Package version has the versions that this build reports.
package version

import "runtime/debug"

// Belay is the version of this source tree.
const Belay = "0.1.0"

// Etcd is the version of etcd whose surface Belay has; clients enable features by it.
const Etcd = "3.7.3"

// MinCluster is the lowest version of a cluster that this build can be a member of.
const MinCluster = "3.0.0"

// Commit returns the revision that the binary was built from, as the Go
// toolchain recorded it; "unknown" if it did not.
func Commit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 9 {
			return s.Value[:9]
		}
	}
	return "unknown"
}
