// Command screenshots makes the pictures of Nomad's UI in docs/images, with a headless
// Chromium and a development stack of its own, which it ends afterwards.
//
//	make screenshots
package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/septemberai/orch/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	dev := flag.String("dev", "bin/orch-dev", "the orch-dev executable")
	out := flag.String("out", "docs/images", "directory of the pictures")
	flag.Parse()
	if err := run(ctx, *dev, *out); err != nil {
		fmt.Fprintln(os.Stderr, "screenshots:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, dev, out string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	s, err := startStack(ctx, dev)
	if err != nil {
		return err
	}
	defer func() {
		if serr := s.stop(); err == nil {
			err = serr
		}
	}()
	pages, err := s.scene(ctx)
	if err != nil {
		return err
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.WindowSize(1280, 720))
	browser, end := chromedp.NewExecAllocator(ctx, options...)
	defer end()
	browser, end = chromedp.NewContext(browser)
	defer end()
	for name, p := range pages {
		if err := chromedp.Do(browser, chromedp.Navigate(s.nomad+p.path), chromedp.WaitVisible(p.shows), chromedp.Sleep(time.Second)); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		png, err := chromedp.Run(browser, chromedp.CaptureScreenshot())
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := os.WriteFile(filepath.Join(out, name+".png"), png, 0o644); err != nil { //nolint:gosec // pictures are public
			return err
		}
	}
	return nil
}

// page is a page of Nomad's UI; shows selects what is visible when it is complete.
type page struct{ path, shows string }

// scene makes engines in different states, and returns the pages to show them, by the name
// of the picture.
func (s *stack) scene(ctx context.Context) (map[string]page, error) {
	ids := map[string]string{}
	for _, user := range []string{"mia@example.com", "ада@example.com"} {
		e, err := s.client.Provision(ctx, user, "")
		if err != nil {
			return nil, err
		}
		ids[user] = e.EngineID
	}
	if _, err := s.client.Stop(ctx, "mia@example.com"); err != nil {
		return nil, err
	}
	if err := s.crash(ctx, "ада@example.com"); err != nil {
		return nil, err
	}
	const described = ".hds-page-header__description code"
	job := func(user string) page { return page{"/ui/jobs/engine-" + ids[user] + "@default", described} }
	return map[string]page{
		"nomad-stopped": job("mia@example.com"),
		"nomad-failed":  job("ада@example.com"),
	}, nil
}

// crash lets an engine's process end until Nomad and the service give it up, and waits
// until its job shows that.
func (s *stack) crash(ctx context.Context, user string) error {
	for ctx.Err() == nil {
		e, err := s.client.Engine(ctx, user)
		if err != nil {
			return err
		}
		if e.Status == client.Failed && s.showsFailure(e.EngineID) {
			return nil
		}
		if e.Status == client.Running && e.URL != "" {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.URL+"/crash", http.NoBody)
			if err != nil {
				return err
			}
			req.Header.Set("X-Engine-Key", e.APIKey)
			if resp, err := http.DefaultClient.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
		time.Sleep(500 * time.Millisecond)
	}
	return ctx.Err()
}
