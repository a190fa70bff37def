package delivery

import (
	"strings"
	"unicode"

	"golang.org/x/net/html"
	"golang.org/x/net/html/atom"
)

// PlainText is what an HTML body says to a reader of plain text: blocks on lines of
// their own, links followed by their addresses in angle brackets (RFC 3986, appendix C),
// images by their alternative text. It takes time and memory linear in the body's
// length, however broken that is: nothing is nested, so nothing has to be closed.
func PlainText(body string) string {
	var (
		t    plainText
		link string // where the open <a> leads
		from int    // where its text begins
	)
	closeLink := func() {
		if link != "" && strings.TrimSpace(t.out.String()[from:]) != strings.TrimPrefix(link, "mailto:") {
			t.words(" <" + link + ">")
		}
		link = ""
	}
	tokens := html.NewTokenizer(strings.NewReader(body))
	for {
		kind := tokens.Next()
		switch kind {
		case html.ErrorToken: // the end: a reader of a string has no other error
			closeLink()
			return t.out.String()
		case html.TextToken:
			t.text(string(tokens.Text()))
			continue
		case html.StartTagToken, html.SelfClosingTagToken, html.EndTagToken:
		default: // comments and the document's type
			continue
		}
		opens := kind != html.EndTagToken
		name, more := tokens.TagName()
		switch atom.Lookup(name) {
		case atom.Script, atom.Style, atom.Title, atom.Noframes, atom.Noembed, atom.Iframe:
			t.hidden = opens // their text is raw: the next tag is their own end
		case atom.A:
			closeLink()
			if opens {
				link, from = address(attribute(tokens, more, "href")), t.out.Len()
			}
		case atom.Img:
			if opens {
				t.words(attribute(tokens, more, "alt"))
			}
		case atom.Br:
			t.feeds++
		case atom.Td, atom.Th:
			t.space = true
		case atom.Li:
			t.bullet = false
			t.block(1)
			if opens {
				t.words("- ")
				t.bullet = true
			}
		case atom.Pre:
			t.block(2)
			t.pre = opens
		case atom.P, atom.H1, atom.H2, atom.H3, atom.H4, atom.H5, atom.H6, atom.Ul, atom.Ol, atom.Dl, atom.Blockquote, atom.Table, atom.Hr:
			t.block(2)
		case atom.Div, atom.Tr, atom.Dt, atom.Dd, atom.Section, atom.Article, atom.Header, atom.Footer, atom.Main, atom.Nav, atom.Aside, atom.Center, atom.Address, atom.Figure, atom.Caption, atom.Body:
			t.block(1)
		}
	}
}

// plainText is a text that grows. White space is written only when a word follows it,
// so that none leads, trails or piles up.
type plainText struct {
	out    strings.Builder
	feeds  int  // line feeds that are due before the next word
	space  bool // a blank is due
	pre    bool // white space is kept
	hidden bool // what comes is not for a reader
	bullet bool // the last that was written
}

// block sees to it that what follows begins n line feeds further down, or beside its bullet.
func (t *plainText) block(n int) {
	if !t.bullet {
		t.feeds = max(t.feeds, n)
	}
}

// text adds what lies between two tags.
func (t *plainText) text(s string) {
	switch {
	case t.hidden:
	case t.pre:
		for line := range strings.Lines(s) {
			rest := strings.TrimRight(line, "\r\n")
			t.write(rest)
			if len(rest) < len(line) {
				t.feeds++
			}
		}
	default:
		t.words(s)
	}
}

// words adds a text with each run of white space as one blank.
func (t *plainText) words(s string) {
	for s != "" {
		word := strings.TrimLeftFunc(s, unicode.IsSpace)
		t.space = t.space || len(word) < len(s)
		end := strings.IndexFunc(word, unicode.IsSpace)
		if end < 0 {
			end = len(word)
		}
		t.write(word[:end])
		s = word[end:]
	}
}

// write adds a text as it is, after the white space that is due.
func (t *plainText) write(s string) {
	if s == "" {
		return
	}
	if t.out.Len() > 0 {
		switch {
		case t.feeds > 0:
			t.out.WriteString("\n\n"[:min(t.feeds, 2)])
		case t.space:
			t.out.WriteByte(' ')
		}
	}
	t.feeds, t.space, t.bullet = 0, false, false
	t.out.WriteString(strings.ToValidUTF8(s, "\uFFFD"))
}

// address is where a link leads, if a reader of plain text can follow it there.
func address(href string) string {
	href = strings.TrimSpace(href)
	scheme, _, _ := strings.Cut(href, ":")
	switch strings.ToLower(scheme) {
	case "http", "https", "mailto", "tel":
		return href
	}
	return ""
}

// attribute is the value of the tag's attribute of that name.
func attribute(tokens *html.Tokenizer, more bool, name string) string {
	for more {
		var key, value []byte
		key, value, more = tokens.TagAttr()
		if string(key) == name {
			return string(value)
		}
	}
	return ""
}
