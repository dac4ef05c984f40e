package store

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"github.com/minio/minio-go/v7/pkg/encrypt"

	"github.com/septemberai/orch/brain"
)

func openS3(u *url.URL, c Credentials) (*S3, error) {
	q := u.Query()
	for key := range q {
		if !strings.Contains(" endpoint region sse kms_key ", " "+key+" ") {
			return nil, brain.Errorf(brain.BadOrder, "the URL of the snapshot store has an unknown parameter %q", key)
		}
	}
	endpoint, err := url.Parse(q.Get("endpoint"))
	if err == nil && q.Get("endpoint") == "" {
		endpoint = &url.URL{Scheme: "https", Host: "s3.amazonaws.com"}
	}
	if err != nil || endpoint.Scheme != "http" && endpoint.Scheme != "https" || endpoint.Host == "" || strings.Trim(endpoint.Path, "/") != "" {
		return nil, brain.Errorf(brain.BadOrder, "endpoint must be http://HOST:PORT or https://HOST:PORT")
	}
	t := http.DefaultTransport.(*http.Transport).Clone()
	t.ResponseHeaderTimeout = 30 * time.Second
	if c.CA != "" {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(c.CA)) {
			return nil, brain.Errorf(brain.BadOrder, "the authority of the snapshot store has no certificate")
		}
		t.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	s := &S3{bucket: u.Host, prefix: strings.TrimPrefix(strings.TrimSuffix(u.Path, "/")+"/", "/")}
	switch sse := q.Get("sse"); sse {
	case "":
	case "AES256":
		s.sse = encrypt.NewSSE()
	case "aws:kms":
		if s.sse, err = encrypt.NewSSEKMS(q.Get("kms_key"), nil); err != nil {
			return nil, brain.Errorf(brain.BadOrder, "kms_key is invalid")
		}
	default:
		return nil, brain.Errorf(brain.BadOrder, "sse must be AES256 or aws:kms")
	}
	keys := credentials.NewStaticV4(c.AccessKey, c.SecretKey, "")
	if c.AccessKey == "" {
		keys = credentials.NewChainCredentials([]credentials.Provider{&credentials.EnvAWS{}, &credentials.IAM{}})
	}
	patient := t.Clone()
	patient.ResponseHeaderTimeout = 0
	opts := &minio.Options{Creds: keys, Secure: endpoint.Scheme == "https", Transport: transport{t, patient}, MaxRetries: attempts}
	// Signing must not need a request, and stores other than Amazon's have one region.
	if opts.Region = q.Get("region"); opts.Region == "" {
		opts.Region = "us-east-1"
	}
	if q.Get("endpoint") != "" {
		opts.BucketLookup = minio.BucketLookupPath
	}
	if s.core, err = minio.NewCore(endpoint.Host, opts); err != nil {
		return nil, brain.Errorf(brain.BadOrder, "the snapshot store: %w", err)
	}
	return s, nil
}

// transport gives the completion of an upload as long as its context has. The store may copy
// the whole object before it responds.
type transport struct{ others, completion http.RoundTripper }

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") {
		return t.completion.RoundTrip(r)
	}
	return t.others.RoundTrip(r)
}

// kind gives an error of the client its kind.
func kind(err error, what string) error {
	if err == nil {
		return nil
	}
	if r := minio.ToErrorResponse(err); r.StatusCode != 0 {
		return brain.Response(r.StatusCode, r.Code, what)
	}
	return brain.Unanswered(err, what)
}
