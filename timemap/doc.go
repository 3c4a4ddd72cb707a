// Package timemap remembers when which revision was the newest: a bounded map from time to
// revision, which each member keeps about itself.
//
// # What for
//
// Revisions are exact, but people remember when something was still right. The map answers "what
// was the newest revision at 10:03:11" and "when was revision 4711 written", so that `ctl get --at`,
// `ctl history` and others can be asked by time.
//
// # What it promises
//
// A point (t, r) says that at t, by this member's clock, it had applied revision r and no later one.
// Once a second the member compares; a second in which nothing was written leaves no point. So a
// time is known to a second for an hour, to ten seconds for a day, and to five minutes for thirty
// days, and what is older is forgotten (see thin). Between two points nothing is known but that the
// revision grew from one to the other: At and Of answer with both.
//
// It is about this member: one that lags, or was off, saw revisions later than others did. Whoever
// asks several members takes the earliest sighting. The map is not replicated, so that members of
// etcd beside it know nothing of it, and a wrong clock spoils one member's only.
//
// If the clock goes back, points beyond it are dropped; if it is more than a minute back, only after
// ten minutes, in which nothing is noted. A member that starts after a crash has a
// lower revision than before until it has replayed its log; until then nothing is noted.
//
// # On disk
//
// One file, member/times: records of 20 bytes (record), appended every ten seconds and at an orderly
// stop, never synced, and written anew by rename when half of them are superfluous. A record that
// was torn by a crash ends what is read. The file may be deleted at any time. A disk that hangs
// delays the writing, not the map.
//
// # Files
//
//	timemap.go  the map in memory: points, thinning, questions
//	keeper.go   sampling, and the file
//	answer.go   what is asked over HTTP
package timemap
