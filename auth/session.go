package auth

import "bytes"

// Session is the user who opened a stream, in a form that outlives the policy and the token that
// identified them: a stream survives the expiry of its token and a newer revision, but not the
// deletion of the user or a new password. The zero Session belongs to nobody.
type Session struct {
	user     string
	known    bool
	token    bool   // a token named the user; else a certificate, for which passwords mean nothing
	password []byte // the hash, of a user whom a token named
}

// NewSession remembers a caller that p has let in; token says whether a token named the user.
func (p *Policy) NewSession(who Identity, token bool) Session {
	s := Session{user: who.User, known: true, token: token}
	if u := p.users[who.User]; u != nil && token {
		s.password = u.record.Password
	}
	return s
}

// Known reports whether s belongs to anybody.
func (s Session) Known() bool { return s.known }

// Resume is the identity of the session under p, a later policy than the one that made it.
// ErrInvalidAuthToken: the user that the token named was deleted or has another password, so a new
// stream would be refused, too. Resume does not check rights.
func (p *Policy) Resume(s Session) (Identity, error) {
	if s.token {
		if u := p.users[s.user]; u == nil || !bytes.Equal(u.record.Password, s.password) {
			return Identity{}, ErrInvalidAuthToken
		}
	}
	return Identity{User: s.user, Revision: p.revision}, nil
}

// SameRights reports whether nothing has changed for the session between two policies: a cheap test
// for the many that a change does not affect. False may also mean that it is not known.
func (p *Policy) SameRights(old *Policy, s Session) bool {
	return s.known && p.enabled == old.enabled && p.users[s.user] != nil && p.users[s.user] == old.users[s.user]
}
