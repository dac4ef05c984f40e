package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
)

// errAbsent says that the agent does not have what was asked for.
var errAbsent = errors.New("it does not exist")

// api calls one agent.
type api struct {
	url, header, token string
	http               *http.Client
}

// newAPI reads the environment variables of an agent's command line.
func newAPI(name string) (*api, error) {
	prefix := strings.ToUpper(name)
	a := &api{url: os.Getenv("NOMAD_ADDR"), token: os.Getenv("NOMAD_TOKEN"), header: "X-Nomad-Token"}
	if name == "consul" {
		a = &api{url: os.Getenv("CONSUL_HTTP_ADDR"), token: os.Getenv("CONSUL_HTTP_TOKEN"), header: "X-Consul-Token"}
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if file := os.Getenv(prefix + "_CACERT"); file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM(pem)
		pair, err := tls.LoadX509KeyPair(os.Getenv(prefix+"_CLIENT_CERT"), os.Getenv(prefix+"_CLIENT_KEY"))
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	a.http = &http.Client{Transport: &http.Transport{TLSClientConfig: conf}}
	return a, nil
}

// call sends in as JSON, unless it is nil, and decodes the response into out, unless that is
// nil. The error is errAbsent for 404.
func (a *api) call(ctx context.Context, method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, a.url+path, body)
	if err != nil {
		return err
	}
	req.Header.Set(a.header, a.token)
	resp, err := a.http.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return errAbsent
	case resp.StatusCode >= http.StatusMultipleChoices:
		return fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, b)
	case out == nil || len(bytes.TrimSpace(b)) == 0:
		return nil
	}
	return json.Unmarshal(b, out)
}

// fill replaces each {name} in a path by the value of that argument. Slashes stay.
func fill(path string, values map[string]any) string {
	for name, value := range values {
		if text, ok := value.(string); ok {
			path = strings.ReplaceAll(path, "{"+name+"}", strings.ReplaceAll(url.PathEscape(text), "%2F", "/"))
		}
	}
	return path
}
