package images

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/hashicorp/go-hclog"
)

// registryOf returns a resolver whose registry responds with head, and its log.
func registryOf(t *testing.T, head func(ctx context.Context, ref name.Reference) (string, error)) (*Resolver, *bytes.Buffer) {
	logs := &bytes.Buffer{}
	r := New(hclog.New(&hclog.LoggerOptions{Output: logs, Level: hclog.Info}))
	r.head = head
	t.Cleanup(r.Close)
	return r, logs
}

func want(t *testing.T, r *Resolver, image, digest string) {
	t.Helper()
	if got, err := r.Digest(t.Context(), image); err != nil || got != digest {
		t.Errorf("%s is %q, %v; want %q", image, got, err, digest)
	}
}

func TestDigestIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) { return fmt.Sprint("sha256:", asked.Add(1)), nil })
		want(t, r, "r.example/e:1", "sha256:1")
		time.Sleep(renewAfter - time.Millisecond)
		want(t, r, "r.example/e:1", "sha256:1")
		want(t, r, "r.example/e:2", "sha256:2")
		time.Sleep(keep - renewAfter + time.Millisecond)
		want(t, r, "r.example/e:1", "sha256:3") // too old to be used
		time.Sleep(renewAfter)
		want(t, r, "r.example/e:1", "sha256:3") // used, and renewed meanwhile
		synctest.Wait()
		want(t, r, "r.example/e:1", "sha256:4")
		if n := asked.Load(); n != 4 {
			t.Errorf("%d questions", n)
		}
	})
}

// A moved tag is noticed within the time that a digest is used, however often the image is
// used.
func TestMovedTagIsSeen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var digest atomic.Value
		digest.Store("sha256:old")
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) {
			time.Sleep(100 * time.Millisecond)
			return digest.Load().(string), nil
		})
		want(t, r, "e", "sha256:old")
		time.Sleep(renewAfter - time.Second)
		digest.Store("sha256:new")
		for moved := time.Now(); time.Since(moved) < keep; time.Sleep(10 * time.Millisecond) {
			if _, err := r.Digest(t.Context(), "e"); err != nil {
				t.Fatal(err)
			}
		}
		want(t, r, "e", "sha256:new")
	})
}

func TestQuestionsAreShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) {
			time.Sleep(time.Second)
			return fmt.Sprint("sha256:", asked.Add(1)), nil
		})
		began := time.Now()
		var work sync.WaitGroup
		for range 50 {
			work.Go(func() { want(t, r, "e:1", "sha256:1") })
		}
		impatient, cancel := context.WithCancel(t.Context())
		work.Go(func() {
			if _, err := r.Digest(impatient, "e:1"); !errors.Is(err, context.Canceled) {
				t.Errorf("a caller that left got %v", err)
			}
		})
		cancel()
		work.Wait()
		if took := time.Since(began); asked.Load() != 1 || took != time.Second {
			t.Errorf("%d questions in %s", asked.Load(), took)
		}
	})
}

// A registry that does not respond costs one wait for all its images together.
func TestSilentRegistry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		var back atomic.Bool
		r, logs := registryOf(t, func(ctx context.Context, ref name.Reference) (string, error) {
			asked.Add(1)
			if back.Load() || ref.Context().RegistryStr() != "down.example" {
				return "sha256:1", nil
			}
			<-ctx.Done()
			return "", ctx.Err()
		})
		began := time.Now()
		for _, image := range []string{"down.example/e:1", "down.example/e:1", "down.example/e:2", "down.example/f"} {
			if _, err := r.Digest(t.Context(), image); err == nil {
				t.Errorf("%s has a digest", image)
			}
		}
		if took := time.Since(began); took != limit || asked.Load() != 1 {
			t.Errorf("%d questions in %s", asked.Load(), took)
		}
		want(t, r, "up.example/e", "sha256:1")
		synctest.Wait()
		if n := strings.Count(logs.String(), "[WARN]"); n != 3 {
			t.Errorf("%d warnings of 3 images:\n%s", n, logs)
		}
		back.Store(true)
		time.Sleep(silence + time.Millisecond)
		want(t, r, "down.example/e:1", "sha256:1")
		synctest.Wait()
		if n := strings.Count(logs.String(), "[INFO]"); n != 1 {
			t.Errorf("it is not logged that it can be resolved again:\n%s", logs)
		}
	})
}

// A digest is used until it expires, even if the registry stops responding.
func TestSilenceKeepsWhatWasSaid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Int64
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) {
			if asked.Add(1) > 1 {
				return "", errors.New("gone")
			}
			return "sha256:1", nil
		})
		want(t, r, "e", "sha256:1")
		time.Sleep(renewAfter)
		want(t, r, "e", "sha256:1")
		synctest.Wait()
		want(t, r, "e", "sha256:1")
		time.Sleep(keep - renewAfter)
		if digest, err := r.Digest(t.Context(), "e"); !errors.Is(err, ErrSilent) {
			t.Errorf("it is %q, %v", digest, err)
		}
		if n := asked.Load(); n != 2 {
			t.Errorf("%d questions", n)
		}
	})
}

// A missing image is a response like any other, and does not affect other images.
func TestNoSuchImage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pushed atomic.Bool
		r, logs := registryOf(t, func(_ context.Context, ref name.Reference) (string, error) {
			if pushed.Load() || ref.Identifier() == "there" {
				return "sha256:1", nil
			}
			return "", &answerError{Status: 404}
		})
		for range 3 {
			var answer *answerError
			if _, err := r.Digest(t.Context(), "e:new"); !errors.As(err, &answer) {
				t.Errorf("got %v", err)
			}
			want(t, r, "e:there", "sha256:1")
		}
		synctest.Wait()
		if n := strings.Count(logs.String(), "[WARN]"); n != 1 {
			t.Errorf("%d warnings:\n%s", n, logs)
		}
		pushed.Store(true)
		time.Sleep(keep)
		want(t, r, "e:new", "sha256:1")
	})
}

// A request that does not end (a credential helper that hangs) is waited for once.
func TestHangingQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) { <-release; return "", errors.New("late") })
		defer close(release)
		began := time.Now()
		for range 3 {
			if _, err := r.Digest(t.Context(), "e"); err == nil {
				t.Error("it has a digest")
			}
		}
		if took := time.Since(began); took != limit+grace {
			t.Errorf("waited %s", took)
		}
	})
}

func TestImagesThatAreNotAskedFor(t *testing.T) {
	r, _ := registryOf(t, func(_ context.Context, ref name.Reference) (string, error) {
		t.Errorf("got a request for %s", ref)
		return "", nil
	})
	digest := "sha256:" + strings.Repeat("ab", 32)
	want(t, r, "r.example/e@"+digest, digest)
	want(t, r, "r.example/e:1@"+digest, digest)
	for _, image := range []string{"", "E", "r.example/e@sha256:1"} {
		if got, err := r.Digest(t.Context(), image); err == nil {
			t.Errorf("%q is %q", image, got)
		}
	}
}

func TestWhatIsKnownIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := registryOf(t, func(context.Context, name.Reference) (string, error) { return "", &answerError{Status: 404} })
		for i := range 3 * maxKnown {
			_, _ = r.Digest(t.Context(), fmt.Sprint("e:", i))
			time.Sleep(2 * keep / maxKnown)
		}
		if len(r.known) > maxKnown || len(r.warned) > maxKnown {
			t.Errorf("%d images are known, %d were warned of", len(r.known), len(r.warned))
		}
	})
}
