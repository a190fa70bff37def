package web

import (
	"html/template"
	"strings"
	"time"
)

// functions are what the pages can say.
var functions = template.FuncMap{
	"when": func(t time.Time) string { return t.UTC().Format("2 Jan 2006 15:04:05") },
	"iso":  func(t time.Time) string { return t.UTC().Format(time.RFC3339Nano) },
	"ms":   func(t time.Time) string { return t.UTC().Format("15:04:05.000") },
	"list": func(s []string) string { return strings.Join(s, ", ") },
	"tone": func(event string) string {
		switch event {
		case "delivered":
			return "good"
		case "bounced", "failed", "suppressed", "canceled":
			return "bad"
		case "delivery_delayed", "scheduled", "waiting", "sending":
			return "wait"
		}
		return "plain"
	},
	"words": func(s string) string { return strings.ReplaceAll(s, "_", " ") },
}
