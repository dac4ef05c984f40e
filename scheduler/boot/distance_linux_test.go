package boot

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/secrets"
)

// The two ends of a long link: packets to farAddr arrive at nearAddr, from farAddr.
const nearAddr, farAddr = "10.99.0.1", "10.99.0.2"

// farLink creates a link from this network namespace to itself with a delay: a tun device
// that returns each packet with its two addresses swapped.
func farLink(t *testing.T, oneWay time.Duration) {
	t.Helper()
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	name, err := unix.NewIfreq("far0")
	if err != nil {
		t.Fatal(err)
	}
	name.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, name); err != nil {
		t.Fatal(err)
	}
	tun := os.NewFile(uintptr(fd), "tun")
	for _, args := range [][]string{{"addr", "add", nearAddr + "/24", "dev", "far0"}, {"link", "set", "far0", "up"}, {"link", "set", "lo", "up"}} {
		if out, err := exec.CommandContext(t.Context(), "ip", args...).CombinedOutput(); err != nil {
			t.Fatalf("ip %v: %v, %s", args, err, out)
		}
	}
	var packets sync.WaitGroup
	packets.Go(func() {
		for {
			packet := make([]byte, 64<<10)
			n, err := tun.Read(packet)
			if err != nil {
				return
			}
			if packet = packet[:n]; n < 20 || packet[0]>>4 != 4 {
				continue
			}
			from, to := [4]byte(packet[12:16]), [4]byte(packet[16:20])
			copy(packet[12:16], to[:])
			copy(packet[16:20], from[:]) // which does not change any checksum
			packets.Add(1)
			time.AfterFunc(oneWay, func() {
				defer packets.Done()
				_, _ = tun.Write(packet)
			})
		}
	})
	t.Cleanup(func() { _ = tun.Close(); packets.Wait() })
}

// TestFarEngine boots, rotates and pauses over a link with a round trip of 200 ms.
func TestFarEngine(t *testing.T) {
	const inside, roundTrip = "ORCH_TEST_FAR", 200 * time.Millisecond
	if os.Getenv(inside) == "" {
		if _, err := os.Stat("/dev/net/tun"); err != nil || os.Geteuid() != 0 {
			t.Skip("needs root and /dev/net/tun")
		}
		again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestFarEngine$", "-test.v")
		again.Env = append(os.Environ(), inside+"=1")
		again.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
		out, err := again.CombinedOutput()
		t.Logf("%s", out)
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	farLink(t, roundTrip/2)
	listener, err := net.Listen("tcp", nearAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	old, next := secrets.NewEngineKey(), secrets.NewEngineKey()
	engine := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/health":
			says(200, `{"status":"ok"}`)(w, r)
		case r.Header.Get("X-Engine-Key") != next:
			w.WriteHeader(http.StatusUnauthorized)
		}
	})}
	served := make(chan error, 1)
	go func() { served <- engine.Serve(listener) }()
	defer func() {
		_ = engine.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	}()
	url := fmt.Sprintf("http://%s:%d", farAddr, listener.Addr().(*net.TCPAddr).Port)
	p := NewProber(2*time.Second, nil)
	within := func(what string, trips int, do func(ctx context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		began := time.Now()
		if err := do(ctx); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		t.Logf("%s took %s, %d round trips would be %s", what, time.Since(began).Round(time.Millisecond), trips, time.Duration(trips)*roundTrip)
	}
	within("boot", 3, func(ctx context.Context) error {
		return NewBoots(p).AwaitUsable(ctx, url, proves(next), nil)
	})
	within("health", 2, func(ctx context.Context) error { return p.Health(ctx, url) })
	within("rotation", 5, func(ctx context.Context) error {
		said, err := (&Rotation{Path: "/proof", Old: old, New: next}).Ask(ctx, p, url)
		if said != "" {
			err = errors.New(said)
		}
		return err
	})
	within("what does not freeze", 6, func(ctx context.Context) error {
		if !p.KeepsAnswering(ctx, url, StillAnswers+3*SlowAnswer) {
			return errors.New("it is considered frozen")
		}
		return nil
	})
}
