package api

import (
	"errors"
	"fmt"
	"net/http"

	"postbook.dev/postbook/domain"
	"postbook.dev/postbook/eventstore"
	"postbook.dev/postbook/projections"
)

// Error is what a customer's program is told. Its name is stable.
type Error struct {
	Status  int    `json:"statusCode"`
	Message string `json:"message"`
	Name    string `json:"name"`
}

func (e *Error) Error() string { return e.Name + ": " + e.Message }

var (
	errMissingKey    = &Error{http.StatusUnauthorized, "Missing API key in the authorization header.", "missing_api_key"}
	errInvalidKey    = &Error{http.StatusBadRequest, "API key is invalid", "validation_error"}
	errRestricted    = &Error{http.StatusUnauthorized, "This API key is restricted to only send emails", "restricted_api_key"}
	errMethod        = &Error{http.StatusMethodNotAllowed, "Method is not allowed for the requested path.", "method_not_allowed"}
	errUnexpected    = &Error{http.StatusInternalServerError, "An unexpected error occurred.", "application_error"}
	errTooMuchAtOnce = &Error{http.StatusTooManyRequests, "Too many large requests at once. Send them one after the other.", "rate_limit_exceeded"}

	errUnavailable = &Error{http.StatusServiceUnavailable, "API is temporarily unavailable", "service_unavailable"}
	errBehind      = &Error{http.StatusServiceUnavailable, "What can be read is behind what was written. Try again.", "service_unavailable"}
	errBadKey      = &Error{http.StatusBadRequest, "Idempotency keys, if present, must have between 1-256 characters.", "invalid_idempotency_key"}
	errConcurrent  = &Error{http.StatusConflict, "There is another request in progress with the same idempotency key.", "concurrent_idempotent_requests"}
	errReused      = &Error{http.StatusConflict, "This idempotency key has been used with this HTTP method and endpoint within the last 24 hours, but the request body was modified and doesn't match the original request.", "invalid_idempotent_request"}
	errErased      = &Error{http.StatusGone, "It was erased on request.", "erased"}
	errStaffLogin  = &Error{http.StatusUnauthorized, "The email address, password or code is not right.", "invalid_credentials"}
	errStaffToken  = &Error{http.StatusUnauthorized, "Sign in first: the session is missing, wrong or over.", "missing_session"}
)

func invalid(format string, args ...any) error {
	return &Error{http.StatusUnprocessableEntity, fmt.Sprintf(format, args...), "validation_error"}
}

func missing(field string) error {
	return &Error{http.StatusUnprocessableEntity, fmt.Sprintf("Missing `%s` field.", field), "missing_required_field"}
}

func notFound(message string) error {
	return &Error{http.StatusNotFound, message, "not_found"}
}

func limited(limit int) error {
	return &Error{http.StatusTooManyRequests, fmt.Sprintf("Too many requests. You can only make %d requests per second. See rate limit response headers for more information.", limit), "rate_limit_exceeded"}
}

// answerTo sorts an error into what its cause may be told. The second result is
// false for a fault, which is logged and kept from them.
func answerTo(err error) (*Error, bool) {
	if e, ok := errors.AsType[*Error](err); ok {
		return e, true
	}
	if r := domain.Refused(err); r != nil {
		return refusal(r), true
	}
	switch {
	case errors.Is(err, domain.ErrErased):
		return errErased, true
	case errors.Is(err, projections.ErrLagging):
		return errBehind, true
	case errors.Is(err, eventstore.ErrUnavailable), errors.Is(err, projections.ErrUnavailable):
		return errUnavailable, false
	}
	return errUnexpected, false
}

// refusal gives a decider's no its place in the contract.
func refusal(r *domain.Refusal) *Error {
	switch r.Code {
	case domain.Missing:
		return &Error{http.StatusUnprocessableEntity, r.Message, "missing_required_field"}
	case domain.NotFound:
		return &Error{http.StatusNotFound, r.Message, "not_found"}
	case domain.Forbidden:
		return &Error{http.StatusForbidden, r.Message, "invalid_permission"}
	case domain.Unverified, domain.Taken:
		return &Error{http.StatusForbidden, r.Message, "validation_error"}
	case domain.Blocked:
		return &Error{http.StatusForbidden, r.Message, "account_blocked"}
	case domain.TooMany:
		return &Error{http.StatusTooManyRequests, r.Message, "rate_limit_exceeded"}
	case domain.Conflicting:
		return &Error{http.StatusConflict, r.Message, "resource_locked"}
	case domain.Held:
		return &Error{http.StatusConflict, r.Message, "legal_hold"}
	case domain.Erased:
		return errErased
	case domain.Invalid, domain.WrongState:
	}
	return &Error{http.StatusUnprocessableEntity, r.Message, "validation_error"}
}
