package api

import (
	"strconv"
	"strings"
	"time"
	_ "time/tzdata" // machines without a zone database answer the same
)

// parseTime reads `scheduled_at`: ISO 8601, or the plain words that the contract
// knows: "in 1 min", "tomorrow at 9am", "Friday at 3pm ET".
func parseTime(s string, now time.Time) (time.Time, error) {
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05.999999999", "2006-01-02 15:04:05.999999-07", "2006-01-02 15:04:05", "2006-01-02T15:04Z07:00", "2006-01-02"} {
		if t, err := time.Parse(layout, strings.TrimSpace(s)); err == nil {
			return t.UTC(), nil
		}
	}
	if t, ok := parseWords(strings.Fields(strings.ToLower(s)), now); ok {
		return t.UTC(), nil
	}
	return time.Time{}, invalid("The `scheduled_at` must be an ISO 8601 date, or words such as `in 1 hour` or `tomorrow at 9am`.")
}

func parseWords(words []string, now time.Time) (time.Time, bool) {
	switch {
	case len(words) == 3 && words[0] == "in":
		return parseAhead(words[1], words[2], now)
	case len(words) == 0 || len(words) > 5:
		return time.Time{}, false
	}
	day, rest := words[0], words[1:]
	zone := time.UTC
	if len(rest) > 0 {
		if z, ok := zones[rest[len(rest)-1]]; ok {
			zone, rest = z, rest[:len(rest)-1]
		}
	}
	hour, minute := 9, 0
	if len(rest) > 0 {
		if rest[0] != "at" || len(rest) > 3 {
			return time.Time{}, false
		}
		var ok bool
		if hour, minute, ok = parseClock(strings.Join(rest[1:], "")); !ok {
			return time.Time{}, false
		}
	}
	local := now.In(zone)
	at := time.Date(local.Year(), local.Month(), local.Day(), hour, minute, 0, 0, zone)
	switch day {
	case "today":
		return at, true
	case "tomorrow":
		return at.AddDate(0, 0, 1), true
	}
	for d := time.Sunday; d <= time.Saturday; d++ {
		if strings.EqualFold(d.String(), day) {
			ahead := (int(d) - int(local.Weekday()) + 7) % 7
			at = at.AddDate(0, 0, ahead)
			if !at.After(now) {
				at = at.AddDate(0, 0, 7)
			}
			return at, true
		}
	}
	return time.Time{}, false
}

func parseAhead(count, unit string, now time.Time) (time.Time, bool) {
	n, err := strconv.Atoi(count)
	if count == "a" || count == "an" {
		n, err = 1, nil
	}
	if err != nil || n < 0 || n > 100_000 {
		return time.Time{}, false
	}
	switch strings.TrimSuffix(unit, "s") {
	case "sec", "second":
		return now.Add(time.Duration(n) * time.Second), true
	case "min", "minute":
		return now.Add(time.Duration(n) * time.Minute), true
	case "h", "hr", "hour":
		return now.Add(time.Duration(n) * time.Hour), true
	case "day":
		return now.AddDate(0, 0, n), true
	case "week":
		return now.AddDate(0, 0, 7*n), true
	}
	return time.Time{}, false
}

// parseClock reads "9am", "3:30pm" or "15:00".
func parseClock(s string) (hour, minute int, ok bool) {
	clock, half := s, ""
	if h, found := strings.CutSuffix(s, "am"); found {
		clock, half = h, "am"
	} else if h, found := strings.CutSuffix(s, "pm"); found {
		clock, half = h, "pm"
	}
	hh, mm, both := strings.Cut(clock, ":")
	hour, err := strconv.Atoi(hh)
	if err != nil {
		return 0, 0, false
	}
	if both {
		if minute, err = strconv.Atoi(mm); err != nil {
			return 0, 0, false
		}
	}
	if half != "" {
		if hour < 1 || hour > 12 {
			return 0, 0, false
		}
		hour %= 12
		if half == "pm" {
			hour += 12
		}
	}
	return hour, minute, hour >= 0 && hour < 24 && minute >= 0 && minute < 60
}

// zones are the abbreviations that people write. Those of North America stand
// for the zone's standard or summer time alike; fixed offsets would be an hour
// off for half the year, so the zone database decides.
var zones = map[string]*time.Location{
	"utc": time.UTC, "gmt": time.UTC,
	"et": zone("America/New_York"), "est": zone("America/New_York"), "edt": zone("America/New_York"),
	"ct": zone("America/Chicago"), "cst": zone("America/Chicago"), "cdt": zone("America/Chicago"),
	"mt": zone("America/Denver"), "mst": zone("America/Denver"), "mdt": zone("America/Denver"),
	"pt": zone("America/Los_Angeles"), "pst": zone("America/Los_Angeles"), "pdt": zone("America/Los_Angeles"),
	"cet": zone("Europe/Berlin"), "cest": zone("Europe/Berlin"), "bst": zone("Europe/London"),
}

func zone(name string) *time.Location {
	l, err := time.LoadLocation(name)
	if err != nil {
		panic("api: the zone database lacks " + name + ": " + err.Error())
	}
	return l
}
