package console

import (
	"net/http"
	"net/url"
	"strings"

	"connectrpc.com/connect"

	"github.com/medway-lb/medway/coordinator/internal/api"
)

type loginBody struct {
	Next, Error string
	// Certificate is the name of the one that the browser shows.
	Certificate string
}

// next is where somebody goes who has logged in: a page of this console.
func next(r *http.Request) string {
	path := r.FormValue("next")
	u, err := url.Parse(path)
	if err != nil || u.Scheme != "" || u.Host != "" || !strings.HasPrefix(path, "/") || strings.HasPrefix(path, "//") || strings.ContainsAny(path, "\\\r\n\t") {
		return "/"
	}
	return path
}

func (c *Console) loginPage(w http.ResponseWriter, r *http.Request) {
	if _, _, err := c.API.Session(r); err == nil {
		http.Redirect(w, r, next(r), http.StatusSeeOther)
		return
	}
	c.showLogin(w, r, nil)
}

func (c *Console) showLogin(w http.ResponseWriter, r *http.Request, err error) {
	p := &page{template: "login", Title: "Log in"}
	body := loginBody{Next: next(r), Certificate: api.Certificate(r)}
	if err != nil {
		p.Title, p.status, body.Error = "Log in: refused", statusOf(err), words(err)
	}
	p.Body = body
	c.show(w, nil, p)
}

func (c *Console) login(w http.ResponseWriter, r *http.Request) {
	token := strings.TrimSpace(r.PostFormValue("token"))
	if token == "" && r.PostFormValue("by") != "certificate" {
		token = "-" // nobody's: an empty field is no wish to show a certificate
	}
	cookie, err := c.API.Login(r, token)
	if err != nil {
		if connect.CodeOf(err) == connect.CodeResourceExhausted || connect.CodeOf(err) == connect.CodeUnavailable {
			c.fail(w, r, nil, err)
			return
		}
		c.showLogin(w, r, err)
		return
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, next(r), http.StatusSeeOther)
}

func (c *Console) logout(w http.ResponseWriter, r *http.Request) {
	cookie, err := c.API.Logout(r)
	if err != nil {
		c.fail(w, r, nil, err)
		return
	}
	http.SetCookie(w, cookie)
	http.Redirect(w, r, "/login", http.StatusSeeOther)
}
