package auth

import "bytes"

// Session is who a stream was opened by, in a form that outlives the policy and the token that said
// so: a stream goes on when its token has ended, or is of an older revision, but not when the user
// is gone or somebody else by now. The zero Session is nobody's.
type Session struct {
	user     string
	known    bool
	token    bool   // a token named the user; else a certificate, for which passwords mean nothing
	password []byte // the hash, of a user whom a token named
}

// NewSession remembers who, whom the policy p has let in; token says whether a token named the
// user.
func (p *Policy) NewSession(who Identity, token bool) Session {
	s := Session{user: who.User, known: true, token: token}
	if u := p.users[who.User]; u != nil && token {
		s.password = u.record.Password
	}
	return s
}

// Known says whether s is somebody's.
func (s Session) Known() bool { return s.known }

// Resume is who has the session under p, a policy that follows the one that made it.
// ErrInvalidAuthToken: the user whom the token named was deleted or has another password, so that a
// new stream would be refused, too. Rights are not looked at.
func (p *Policy) Resume(s Session) (Identity, error) {
	if s.token {
		if u := p.users[s.user]; u == nil || !bytes.Equal(u.record.Password, s.password) {
			return Identity{}, ErrInvalidAuthToken
		}
	}
	return Identity{User: s.user, Revision: p.revision}, nil
}

// SameRights says that nothing has changed for the session between two policies: a cheap way to
// know it for the many whom a change does not concern. False may mean that it is not known.
func (p *Policy) SameRights(old *Policy, s Session) bool {
	return s.known && p.enabled == old.enabled && p.users[s.user] != nil && p.users[s.user] == old.users[s.user]
}
