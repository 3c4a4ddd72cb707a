package command

import (
	"fmt"
	"net/url"
	"strconv"
)

// A member that heals comes back as its heir: another member, with an id that has promised nothing,
// at the same addresses. The heir is added before the old member is removed, so that at each moment
// the list of members says what is under way: for as long as both are in it, the heir's peer URLs
// carry a query that names the old one.

// HeirID is the heir's id. It follows from what only the member that heals has drawn, so whoever
// knows the nonce is who the heir was added for, and adding it twice is adding it once. voter: it
// replaces a member that votes, and may be promoted.
func HeirID(peerURLs []string, nonce string, voter bool) uint64 {
	kind := " heals a learner "
	if voter {
		kind = " heals a voter "
	}
	return MemberID(peerURLs, kind+nonce, nil)
}

// heirQuery begins the query of an heir's peer URLs.
const heirQuery = "replaces"

// HeirURLs are the peer URLs of an heir as long as the member that it replaces is there. etcd and
// Belay take a query for valid in a peer URL; two members with the same URL they do not.
func HeirURLs(peerURLs []string, replaces uint64) []string {
	urls := make([]string, len(peerURLs))
	for i, s := range peerURLs {
		urls[i] = fmt.Sprintf("%s?%s=%s", s, heirQuery, IDText(replaces))
	}
	return urls
}

// PlainURLs undoes HeirURLs; replaces is 0 for URLs of any other member, which are returned as they
// are.
func PlainURLs(peerURLs []string) (plain []string, replaces uint64) {
	for _, s := range peerURLs {
		u, err := url.Parse(s)
		if err != nil {
			return peerURLs, 0
		}
		id, err := strconv.ParseUint(u.Query().Get(heirQuery), 16, 64)
		if err != nil || id == 0 || replaces != 0 && id != replaces {
			return peerURLs, 0
		}
		u.RawQuery = ""
		plain, replaces = append(plain, u.String()), id
	}
	return plain, replaces
}
