package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
)

// profile asks the service for one of Go's profiles of it (ORCH_PPROF_ADDR).
func (s *service) profile(ctx context.Context, name string) (io.ReadCloser, error) {
	var addr string
	select {
	case addr = <-s.log.profiles:
		s.log.profiles <- addr // for the next
	default:
		return nil, errors.New("the service serves no profiles")
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/debug/pprof/"+name, nil)
	if err != nil {
		return nil, err
	}
	resp, err := s.HTTP.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		_ = resp.Body.Close()
		return nil, fmt.Errorf("profile %s: %s", name, resp.Status)
	}
	return resp.Body, nil
}

// saveProfile keeps a profile in a file.
func (s *service) saveProfile(ctx context.Context, name, file string) (err error) {
	body, err := s.profile(ctx, name)
	if err != nil {
		return err
	}
	defer func() { _ = body.Close() }()
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, body)
	return errors.Join(err, f.Close())
}

// liveHeapMiB is what the service's heap holds after a collection, in MiB.
func (s *service) liveHeapMiB(ctx context.Context) (float64, error) {
	body, err := s.profile(ctx, "heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	defer func() { _ = body.Close() }()
	for lines := bufio.NewScanner(body); lines.Scan(); {
		if text, found := strings.CutPrefix(lines.Text(), "# HeapAlloc = "); found {
			n, err := strconv.ParseFloat(text, 64)
			return n / (1 << 20), err
		}
	}
	return 0, errors.New("the heap's profile does not tell HeapAlloc")
}
