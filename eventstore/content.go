package eventstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/nats-io/nats.go"

	"postbook.dev/postbook/domain"
)

// maxContent is how many bytes of content lie in one message.
const maxContent = 768 << 10

// latelyContent is how many messages of content are kept in memory.
const latelyContent = 32

// PutContent stores blobs, which are sealed already, packed into as few messages
// as possible. It returns their references once the server has them, and a
// function that waits until they are on disk, so that the events that refer to
// them can be on their way meanwhile.
func (s *Store) PutContent(ctx context.Context, account string, blobs [][]byte) ([]domain.ContentRef, func(context.Context) error, error) {
	if !isToken(account) {
		return nil, nil, fmt.Errorf("eventstore: put content: %q is no account", account)
	}
	// Parts name the message by its index until its sequence is known.
	refs, msgs := pack(blobs)
	for _, m := range msgs {
		m.Subject = "content." + account
	}
	out := s.publish(ctx, false, msgs...)
	for i, p := range out {
		if p.err != nil {
			return nil, nil, fmt.Errorf("eventstore: put content: %w", p.err)
		}
		s.content.keep(Entry{Position: domain.Position{Log: Content, Seq: p.seq}, Raw: msgs[i].Data})
	}
	for _, ref := range refs {
		for i := range ref.Parts {
			ref.Parts[i].Seq = out[ref.Parts[i].Seq].seq
		}
	}
	wait := func(ctx context.Context) error {
		s.waitForDisk(ctx, out)
		for _, p := range out {
			if p.err != nil {
				return fmt.Errorf("eventstore: put content: %w", p.err)
			}
		}
		return nil
	}
	return refs, wait, nil
}

func pack(blobs [][]byte) ([]domain.ContentRef, []*nats.Msg) {
	var msgs []*nats.Msg
	left := 0 // bytes that are not packed yet
	for _, blob := range blobs {
		left += len(blob)
	}
	refs := make([]domain.ContentRef, len(blobs))
	for i, blob := range blobs {
		sum := sha256.Sum256(blob)
		refs[i] = domain.ContentRef{SHA256: hex.EncodeToString(sum[:]), Size: len(blob)}
		for rest := blob; ; {
			if len(msgs) == 0 || len(msgs[len(msgs)-1].Data) == maxContent {
				msgs = append(msgs, &nats.Msg{Data: make([]byte, 0, min(left, maxContent))})
			}
			m := msgs[len(msgs)-1]
			n := min(len(rest), maxContent-len(m.Data))
			refs[i].Parts = append(refs[i].Parts, domain.ContentPart{Seq: uint64(len(msgs) - 1), Off: len(m.Data), Len: n})
			m.Data = append(m.Data, rest[:n]...)
			left -= n
			if rest = rest[n:]; len(rest) == 0 {
				break
			}
		}
	}
	return refs, msgs
}

// Content returns a blob. It is an error if it is not, byte for byte, the one
// that the reference was made for.
func (s *Store) Content(ctx context.Context, ref domain.ContentRef) ([]byte, error) {
	blob := make([]byte, 0, min(max(ref.Size, 0), len(ref.Parts)*maxContent)) // a size that cannot be is found out below
	for _, part := range ref.Parts {
		e, err := s.content.at(ctx, Content, part.Seq)
		if err != nil {
			return nil, err
		}
		data := e.Raw
		if part.Off < 0 || part.Len < 0 || part.Off > len(data) || part.Len > len(data)-part.Off {
			return nil, fmt.Errorf("eventstore: content %d holds %d bytes, and %d from %d are referred to", part.Seq, len(data), part.Len, part.Off)
		}
		blob = append(blob, data[part.Off:part.Off+part.Len]...)
	}
	sum := sha256.Sum256(blob)
	if len(blob) != ref.Size || hex.EncodeToString(sum[:]) != ref.SHA256 {
		return nil, errors.New("eventstore: the content is not what was stored: its size or SHA-256 differs from the reference")
	}
	return blob, nil
}
