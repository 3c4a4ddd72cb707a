// Package top is `belay ctl top`: a cluster as it works, on a terminal, again and again.
//
// An [Asker] looks at all members at once over connections that it keeps; [Between] makes a [Picture]
// of two looks, which asks nobody; a page is made of a picture, plain lines of a given width and
// height; the screen shows pages and takes keys. What members tell comes from the same answers that
// `belay doctor` reads: their status, /metrics and, of Belay, what they recorded and who uses them. Of
// etcd it shows what its metrics have.
//
// What comes from members, names of keys above all, may be anything: it is shown with control
// characters replaced, so that nothing of it reaches the terminal as a command.
//
// Files: look.go (asking), picture.go (what two looks tell), page.go and grid.go (lines), screen.go
// (the terminal), run.go (both ways to run).
package top
