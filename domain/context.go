package domain

import "context"

type authorityKey struct{}

// Within returns a context that says on whose behalf work is done, so that an
// opening of sealed data deep below a request can be put on record.
func Within(ctx context.Context, by Authority) context.Context {
	return context.WithValue(ctx, authorityKey{}, by)
}

// OnBehalf returns the authority that Within put into the context.
func OnBehalf(ctx context.Context) (Authority, bool) {
	by, ok := ctx.Value(authorityKey{}).(Authority)
	return by, ok
}
