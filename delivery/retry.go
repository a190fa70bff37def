package delivery

import "time"

// MaxAge is how long delivery of an email is tried.
const MaxAge = 72 * time.Hour

// The waits between tries: the first soon, because greylisting (RFC 6647) asks
// for no more; the last is repeated.
var waits = []time.Duration{
	time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute,
	time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour,
}

// Backoff is how long to wait after a number of tries, 1 or more. random gives
// numbers in [0, 1): the wait is moved by up to a fifth, so that emails which
// failed together do not come back together.
func Backoff(tries int, random func() float64) time.Duration {
	wait := waits[min(max(tries, 1), len(waits))-1]
	return time.Duration(float64(wait) * (0.8 + 0.4*random()))
}
