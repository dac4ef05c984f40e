package server_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// BenchmarkAdmit admits users to running engines, with real agents and over persistent
// connections. The client writes prepared bytes and reads little of a response, so that
// mostly the service is measured: cpu-µs/op is the CPU time of this process, without
// Consul's.
//
//	go test -run '^$' -bench Admit -benchmem ./server
func BenchmarkAdmit(b *testing.B) {
	const engines, callersPerCPU = 16, 16
	a := startAPI(b, fmt.Sprint("ORCH_VOLUME_POOL=", engines))
	var group errgroup.Group
	for i := range engines {
		group.Go(func() error {
			a.call(b, "POST", "/engines/provision", fmt.Sprintf(`{"user_id": "user-%d"}`, i)).want(b, 200, "")
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		b.Fatal(err)
	}
	requests := make([][]byte, engines)
	for i := range requests {
		requests[i] = fmt.Appendf(nil, "POST /engines/user-%d/admit HTTP/1.1\r\nHost: orch\r\nX-Platform-Key: %s\r\nContent-Length: 0\r\n\r\n", i, a.key)
	}
	var caller atomic.Int64
	b.SetParallelism(callersPerCPU)
	b.ReportAllocs()
	b.ResetTimer()
	before := cpuTime(b)
	b.RunParallel(func(pb *testing.PB) {
		n := int(caller.Add(1))
		conn, err := net.Dial("tcp", strings.TrimPrefix(a.url, "http://"))
		if err != nil {
			b.Error(err)
			return
		}
		defer func() { _ = conn.Close() }()
		answers := bufio.NewReader(conn)
		for ; pb.Next(); n++ {
			_, err := conn.Write(requests[n%engines])
			if err == nil {
				err = admitted(answers)
			}
			if err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.ReportMetric(float64((cpuTime(b)-before).Microseconds())/float64(b.N), "cpu-µs/op")
}

// admitted reads a response, and fails unless it grants the admit.
func admitted(r *bufio.Reader) error {
	for length := 0; ; {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return err
		}
		if value, found := bytes.CutPrefix(line, []byte("Content-Length: ")); found {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return err
			}
		}
		if len(bytes.TrimSpace(line)) > 0 {
			continue
		}
		body, err := r.Peek(length)
		if err == nil && !bytes.HasPrefix(body, []byte(`{"admitted":true`)) {
			err = fmt.Errorf("the response is %s", body)
		}
		_, _ = r.Discard(length)
		return err
	}
}

// cpuTime returns the CPU time that this process has used.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		b.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}
