package auth

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// SessionTime is how long a person stays logged in.
const SessionTime = 12 * time.Hour

// The cookie's name has the prefix that makes browsers refuse the cookie unless it is
// Secure, for this host alone, and for all paths (RFC 6265bis). Where TLS is off no
// browser would keep such a cookie.
const (
	cookieName      = "__Host-medway"
	plainCookieName = "medway-without-tls"
)

// Session is a person at a browser. It is stored under SessionKey of the cookie's
// value, so that who reads the store can't take it over.
type Session struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
	// Grant is when the grant was given that it is of: one that is given to the same
	// name later is another.
	Grant time.Time `json:"grant"`
}

// NewSession makes a session of somebody, the cookie for the browser, and the key under
// which the session is stored. It ends with the grant, if that is sooner. plain is for
// a server without TLS.
func NewSession(who Identity, now time.Time, plain bool) (c *http.Cookie, key string, s Session) {
	s = Session{Name: who.Name, Expires: now.Add(SessionTime).UTC(), Grant: who.Since}
	if end := who.Expires; end != nil && end.Before(s.Expires) {
		s.Expires = end.UTC()
	}
	c = cookie(rand.Text()+rand.Text(), s.Expires, plain)
	return c, hash(c.Value), s
}

// EndSession is the cookie that makes a browser forget its own.
func EndSession(plain bool) *http.Cookie {
	c := cookie("", time.Unix(1, 0), plain)
	c.MaxAge = -1
	return c
}

// cookie is one that no script reads and that no other site's page sends along.
func cookie(value string, expires time.Time, plain bool) *http.Cookie {
	return &http.Cookie{Name: nameOf(plain), Value: value, Path: "/", Expires: expires, Secure: !plain, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

func nameOf(plain bool) string {
	if plain {
		return plainCookieName
	}
	return cookieName
}

// SessionKey is the name under which the session of a request is stored; false where
// it has no cookie.
func SessionKey(r *http.Request, plain bool) (key string, ok bool) {
	c, err := r.Cookie(nameOf(plain))
	if err != nil || c.Value == "" {
		return "", false
	}
	return hash(c.Value), true
}

// DecodeSession reads a stored session, and refuses one that has ended.
func DecodeSession(value []byte, now time.Time) (Session, error) {
	var s Session
	if err := decode(value, &s); err != nil {
		return Session{}, fmt.Errorf("session: %w", err)
	}
	if s.Name == "" || !now.Before(s.Expires) {
		return Session{}, errors.New("session: it has ended")
	}
	return s, nil
}

// OwnPages lets what changes something pass only from pages of this server: browsers
// say from where a request comes. That and a cookie that other sites' pages don't send
// along take the place of a token in each form.
func OwnPages(h http.Handler) http.Handler { return http.NewCrossOriginProtection().Handler(h) }
