package state

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The bounds keep a fault short enough for the status of every node, whatever
// the value was.
const (
	maxErrorText = 400
	maxQuoted    = 80
)

// FieldError is one thing that is wrong with a value.
type FieldError struct {
	// Field is the path to it in the names of the wire form, for example
	// "services[0].port" or "groups.dc1"; "" is the value as a whole.
	Field string
	// Found says what is there, Expected what should be; "" where Found says
	// that too.
	Found, Expected string
}

func (e FieldError) Error() string {
	text := e.Found
	if e.Expected != "" {
		text += ": expected " + e.Expected
	}
	if e.Field != "" {
		text = "field " + e.Field + ": " + text
	}
	return shorten(text, maxErrorText)
}

// Invalid is all that is wrong with one value, in the order of its fields. Its
// text is printable and of 400 bytes at most.
type Invalid []FieldError

func (e Invalid) Error() string {
	const more = len(" (and 1000000 more)")
	text := e[0].Error()
	for i, next := range e[1:] {
		if s := text + "; " + next.Error(); len(s) <= maxErrorText-more {
			text = s
			continue
		}
		return fmt.Sprintf("%s (and %d more)", shorten(text, maxErrorText-more), len(e)-1-i)
	}
	return text
}

// checker gathers what is wrong with a value.
type checker struct{ errs Invalid }

func (c *checker) wrong(field, value, expected string) {
	c.errs = append(c.errs, FieldError{field, "value " + Quote(value), expected})
}

func (c *checker) missing(field, expected string) {
	c.errs = append(c.errs, FieldError{field, "missing", expected})
}

func (c *checker) err() error {
	if len(c.errs) == 0 {
		return nil
	}
	return c.errs
}

// Quote quotes text that may hold anything for a person's eyes: what can't be
// printed (control characters, marks that change the direction of writing,
// bytes that are no UTF-8) is escaped, and what is long is cut.
func Quote(text string) string {
	short := cut(text, maxQuoted)
	q := strconv.Quote(short)
	for len(q) > 2*maxQuoted { // an escape takes up to ten bytes
		short = cut(short, len(short)/2)
		q = strconv.Quote(short)
	}
	if short != text {
		return fmt.Sprintf("%s... (%d bytes)", q, len(text))
	}
	return q
}

// Printable is text as it is where all of it can be printed and it is not long,
// and otherwise its quoted form.
func Printable(text string) string {
	const most = 300 // more than any key of the layout
	q := strconv.Quote(cut(text, most))
	if len(text) <= most && q == `"`+text+`"` {
		return text
	}
	return Quote(text)
}

// Line makes a line of a longer text safe to show: only what can't be printed
// is escaped.
func Line(text string) string {
	var b strings.Builder
	for i, r := range text {
		if r == '\ufffd' || !strconv.IsPrint(r) {
			_, size := utf8.DecodeRuneInString(text[i:])
			q := strconv.Quote(text[i : i+size])
			b.WriteString(q[1 : len(q)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// shorten cuts text to at most n bytes, and shows that it did.
func shorten(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return cut(text, n-3) + "..."
}

// cut cuts text to at most n bytes, not within a character.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && text[n]&0xc0 == 0x80 {
		n--
	}
	return text[:n]
}
