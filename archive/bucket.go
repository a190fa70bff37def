package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

// bucket is a place behind an endpoint that speaks S3.
type bucket struct {
	client *minio.Client
	name   string
	prefix string // "" or one that ends with a slash
}

// patience bounds one request, so that a connection that hangs does not stop the
// archiver.
const patience = 2 * time.Minute

// openBucket reads s3://bucket/prefix?endpoint=…&region=…&insecure=true.
func openBucket(text string) (Place, error) {
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.User != nil {
		return nil, errors.New("archive: an S3 place is s3://bucket?endpoint=HOST, without credentials: they come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a file of AWS's, or the machine's role")
	}
	query := u.Query()
	for name := range query {
		if name != "endpoint" && name != "region" && name != "insecure" {
			return nil, fmt.Errorf("archive: an S3 place has endpoint, region and insecure, and not %q", name)
		}
	}
	endpoint, secure := query.Get("endpoint"), query.Get("insecure") != "true"
	switch {
	case endpoint == "":
		endpoint = "s3.amazonaws.com"
	case strings.HasPrefix(endpoint, "http://"):
		endpoint, secure = strings.TrimPrefix(endpoint, "http://"), false
	default:
		endpoint = strings.TrimPrefix(endpoint, "https://")
	}
	client, err := minio.New(strings.TrimSuffix(endpoint, "/"), &minio.Options{
		Secure: secure,
		Region: query.Get("region"),
		Creds: credentials.NewChainCredentials([]credentials.Provider{
			&credentials.EnvAWS{}, &credentials.FileAWSCredentials{}, &credentials.IAM{},
		}),
	})
	if err != nil {
		return nil, fmt.Errorf("archive: open %s: %w", u.Host, err)
	}
	b := &bucket{client: client, name: u.Host, prefix: strings.Trim(u.Path, "/")}
	if b.prefix != "" {
		b.prefix += "/"
	}
	return b, nil
}

func (b *bucket) String() string { return "s3://" + b.name + "/" + b.prefix }

// Put sends an object in one request, which keeps all of it or nothing.
func (b *bucket) Put(ctx context.Context, name string, data []byte) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err := b.client.PutObject(ctx, b.name, b.prefix+name, bytes.NewReader(data), int64(len(data)), minio.PutObjectOptions{
		ContentType: "application/octet-stream", DisableMultipart: true, SendContentMd5: true,
	})
	if err != nil {
		return fmt.Errorf("archive: write %s to %s: %w", name, b, err)
	}
	return nil
}

func (b *bucket) Get(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if n <= 0 {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var options minio.GetObjectOptions
	if err := options.SetRange(off, off+n-1); err != nil {
		return nil, fmt.Errorf("archive: read %s: %w", name, err)
	}
	core := minio.Core{Client: b.client}
	body, _, _, err := core.GetObject(ctx, b.name, b.prefix+name, options)
	if err != nil {
		return nil, b.failed(name, err)
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, n))
	if err != nil {
		return nil, b.failed(name, err)
	}
	return data, nil
}

func (b *bucket) failed(name string, err error) error {
	switch minio.ToErrorResponse(err).Code {
	case minio.NoSuchKey:
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	case "InvalidRange":
		err = fmt.Errorf("%w: %w", io.ErrUnexpectedEOF, err)
	}
	return fmt.Errorf("archive: read %s from %s: %w", name, b, err)
}

func (b *bucket) List(ctx context.Context, prefix string) ([]Object, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var all []Object
	for o := range b.client.ListObjects(ctx, b.name, minio.ListObjectsOptions{Prefix: b.prefix + prefix, Recursive: true}) {
		if o.Err != nil {
			return nil, fmt.Errorf("archive: list %s: %w", b, o.Err)
		}
		all = append(all, Object{strings.TrimPrefix(o.Key, b.prefix), o.Size})
	}
	return all, nil
}
