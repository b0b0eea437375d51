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

// cookieName has the prefix that makes browsers refuse the cookie unless it is
// Secure, for this host alone, and for all paths (RFC 6265bis).
const cookieName = "__Host-medway"

// Session is a person at a browser. It is stored under SessionKey of the cookie's
// value, so that who reads the store can't take it over.
type Session struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
}

// NewSession makes a session, and the cookie for the browser.
func NewSession(name string, now time.Time) (*http.Cookie, Session) {
	s := Session{Name: name, Expires: now.Add(SessionTime).UTC()}
	return cookie(rand.Text()+rand.Text(), s.Expires), s
}

// EndSession is the cookie that makes a browser forget its own.
func EndSession() *http.Cookie {
	c := cookie("", time.Unix(1, 0))
	c.MaxAge = -1
	return c
}

// cookie is one that no script reads and that no other site's page sends along.
func cookie(value string, expires time.Time) *http.Cookie {
	return &http.Cookie{Name: cookieName, Value: value, Path: "/", Expires: expires, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// SessionKey is the name under which the session of a request is stored; false where
// it has no cookie.
func SessionKey(r *http.Request) (key string, ok bool) {
	c, err := r.Cookie(cookieName)
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
