package listen

import (
	"crypto/x509"
	"time"
)

// A Certificate is one that a Security presents or trusts, as its file has it now.
type Certificate struct {
	File                string
	Authority           bool   // of the CA file, not one that is shown
	Subject             string // its common name, or the whole name
	NotBefore, NotAfter time.Time
}

// Certificates are those that are presented, and of the authorities the one that is valid longest:
// a bundle keeps an old one beside its successor.
func (s *Security) Certificates() (list []Certificate) {
	add := func(file string, authority bool, c *x509.Certificate) {
		subject := c.Subject.CommonName
		if subject == "" {
			subject = c.Subject.String()
		}
		list = append(list, Certificate{File: file, Authority: authority, Subject: subject, NotBefore: c.NotBefore, NotAfter: c.NotAfter})
	}
	for _, k := range s.pairs {
		if pair, err := k.get(); err == nil && pair.Leaf != nil {
			add(k.certFile, false, pair.Leaf)
		}
	}
	if s.cas != nil {
		s.cas.get()
		s.cas.mu.Lock()
		defer s.cas.mu.Unlock()
		longest := s.cas.certs[0]
		for _, c := range s.cas.certs {
			if c.NotAfter.After(longest.NotAfter) {
				longest = c
			}
		}
		add(s.cas.path, true, longest)
	}
	return list
}

// Validity is the state of a certificate at a moment.
type Validity int

// The validities, from the best.
const (
	Valid       Validity = iota
	ExpiresSoon          // see Certificate.Validity
	NotYetValid
	Expired
)

// soonAtMost is how long before its expiry a long-lived certificate is reported.
const soonAtMost = 30 * 24 * time.Hour

// Validity is ExpiresSoon when less than a fifth of its life is left, and less than 30 days: a
// certificate for one day is reported in its last five hours, before which it should have been
// renewed.
func (c Certificate) Validity(now time.Time) Validity {
	left := c.NotAfter.Sub(now)
	switch {
	case left <= 0:
		return Expired
	case now.Before(c.NotBefore):
		return NotYetValid
	case left < soonAtMost && left < c.NotAfter.Sub(c.NotBefore)/5:
		return ExpiresSoon
	}
	return Valid
}
