package server

import (
	"net/http"
)

// pathBackup is backup.Path: the two rooms are on one floor, and `ctl backup`, which asks at the one
// what this serves at the other, holds them together.
const pathBackup = "/debug/belay/backup"

// serveBackup lets in who may administrate, by a token or a certificate as with a gRPC call, and no
// page of another origin: a backup costs as much as reading all data.
func (p *pages) serveBackup(w http.ResponseWriter, r *http.Request) {
	if origin, cross := crossOrigin(r); cross {
		http.Error(w, "a page of another origin asks for it: "+origin, http.StatusForbidden)
		return
	}
	if err := p.admin(callOf(r)); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	p.backups.ServeHTTP(w, r)
}
