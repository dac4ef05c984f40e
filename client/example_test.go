package client_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/septemberai/orch/client"
)

// README.md has the body of this function.
func Example() {
	orch := &client.Client{BaseURL: os.Getenv("ORCH_URL"), PlatformKey: os.Getenv("ORCH_PLATFORM_KEY"), Retry: client.RetryPolicy{Attempts: 5}}
	admission, err := orch.Admit(context.Background(), "alice@example.com", client.AdmitOptions{AutoProvision: true, AutoWake: true})
	switch {
	case errors.Is(err, client.ErrQuotaExceeded):
		fmt.Println("no more engines")
	case err != nil:
		fmt.Println(err)
	case admission.Admitted:
		fmt.Println("the engine is at", admission.Engine.URL)
	default:
		fmt.Println("not admitted:", admission.Reason)
	}
}

// TestREADME: the example in README.md is the one above, which compiles.
func TestREADME(t *testing.T) {
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("example_test.go")
	if err != nil {
		t.Fatal(err)
	}
	_, shown, _ := strings.Cut(string(readme), "\n```go\n")
	shown, _, ended := strings.Cut(shown, "\n```\n")
	_, body, _ := strings.Cut(string(source), "\nfunc Example() {\n")
	body, _, _ = strings.Cut(body, "\n}\n")
	if body = strings.ReplaceAll("\n"+body, "\n\t", "\n")[1:]; !ended || shown != body {
		t.Errorf("README.md has\n%s\nwant\n%s", shown, body)
	}
}
