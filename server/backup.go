package server

import (
	"net/http"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/metadata"
)

// pathBackup is where a member is asked about its backups, and told to make one (package backup).
const pathBackup = "/debug/belay/backup"

// serveBackup lets in who may administrate, by a token as on the gateway, and no page of another
// origin: a backup costs as much as reading all data.
func (p *pages) serveBackup(w http.ResponseWriter, r *http.Request) {
	if origin, cross := crossOrigin(r); cross {
		http.Error(w, "a page of another origin asks for it: "+origin, http.StatusForbidden)
		return
	}
	ctx := r.Context()
	if token := r.Header.Get("Authorization"); token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs(rpctypes.TokenFieldNameGRPC, token))
	}
	if err := p.admin(ctx); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	p.backups.ServeHTTP(w, r)
}
