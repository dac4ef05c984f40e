package remote

import (
	"bufio"
	"fmt"
	"io"
	"net/url"
	"os"
	"strings"

	"github.com/mattn/go-isatty"

	"github.com/septemberai/orch/client"
)

// Env is what commands see of the world.
type Env struct {
	In            io.Reader
	Out, Err      io.Writer
	InTTY, ErrTTY bool // they are terminals
	Getenv        func(string) string
}

// OS is the environment of this process.
func OS() *Env {
	return &Env{
		In: os.Stdin, Out: os.Stdout, Err: os.Stderr,
		InTTY: isatty.IsTerminal(os.Stdin.Fd()), ErrTTY: isatty.IsTerminal(os.Stderr.Fd()),
		Getenv: os.Getenv,
	}
}

const (
	urlVar      = "ORCH_URL"
	platformVar = "ORCH_PLATFORM_KEY"
	adminVar    = "ORCH_ADMIN_KEY"
	defaultURL  = "http://127.0.0.1:8000"
)

// need says which key a command needs.
type need int

const (
	needsNothing need = iota // not even the service
	needsPlatformKey
	needsAdminKey
	needsEither
)

func (n need) help() string {
	key := map[need]string{
		needsPlatformKey: platformVar, needsAdminKey: adminVar, needsEither: platformVar + ", or else " + adminVar,
	}[n]
	if key == "" {
		return ""
	}
	return fmt.Sprintf("\nEnvironment:\n  %s (default %s), %s\n", urlVar, defaultURL, key)
}

// client is a client of the service that the environment names. It has only the
// keys that a command needs.
func (e *Env) client(n need) (*client.Client, error) {
	c := &client.Client{BaseURL: e.Getenv(urlVar)}
	if c.BaseURL == "" {
		c.BaseURL = defaultURL
	}
	if u, err := url.Parse(c.BaseURL); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, wrong("%s is not a URL as in %s", urlVar, defaultURL)
	}
	platform, admin := e.Getenv(platformVar), e.Getenv(adminVar)
	if n != needsAdminKey {
		c.PlatformKey = platform
	}
	if n != needsPlatformKey {
		c.AdminKey = admin
	}
	switch {
	case n == needsPlatformKey && platform == "":
		return nil, wrong("%s is not set; it holds the product's platform key", platformVar)
	case n == needsAdminKey && admin == "":
		return nil, wrong("%s is not set; it holds the admin key", adminVar)
	case n == needsEither && platform == "" && admin == "":
		return nil, wrong("neither %s nor %s is set", platformVar, adminVar)
	}
	return c, nil
}

// confirm asks a question on the terminal. Anything but yes is a no.
func (e *Env) confirm(question string) error {
	if !e.InTTY {
		return wrong("this cannot be undone, and there is no terminal to ask on: say -yes")
	}
	_, _ = fmt.Fprintf(e.Err, "%s [y/N] ", clean(question))
	answer, _ := bufio.NewReader(e.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return nil
	}
	_, _ = fmt.Fprintln(e.Err, "Nothing was done.")
	return errNo
}
