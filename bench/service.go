//go:build linux

package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/septemberai/orch/client"
)

// stopWithin is how long a service process may take to finish what is in flight before
// it is killed: after a burst the cores are not its own for long.
const stopWithin = time.Minute

// service is one process of `orch server`, as one of its products calls it.
type service struct {
	*client.Client // with the product's key
	productID      string
	admin          *client.Client
	name           string

	cmd      *exec.Cmd
	end      context.CancelFunc // of cmd
	profiles string             // address
	logFile  string
	read     int64 // how much of the log was looked at
}

// start starts a service process, which endServices ends, and returns when it is ready
// and has a product. vars are all its ORCH_ variables.
func (r *rig) start(ctx context.Context, vars map[string]string) *service {
	name := strings.Trim(vars["ORCH_CONSUL_PREFIX"], "/")
	s := &service{name: name, logFile: filepath.Join(r.dir, name+".log")}
	mount := strings.ReplaceAll(name, "_", "-")
	token := must(r.stack.Mount(ctx, mount))
	log := must(os.Create(s.logFile))
	defer func() { _ = log.Close() }() // the process has its own
	ended, end := context.WithCancel(context.WithoutCancel(ctx))
	s.cmd, s.end = exec.CommandContext(ended, filepath.Join(r.dir, "orch"), "server"), end
	s.cmd.Cancel, s.cmd.WaitDelay = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }, stopWithin
	s.cmd.SysProcAttr, s.cmd.Stderr = childAttributes, log
	s.cmd.Env = append(environ(vars), "PATH="+os.Getenv("PATH"), "NOMAD_ADDR="+r.stack.NomadAddr, "CONSUL_HTTP_ADDR="+r.stack.ConsulAddr,
		"VAULT_ADDR="+r.stack.VaultAddr, "VAULT_TOKEN="+token, "ORCH_VAULT_MOUNT="+mount)
	check(s.cmd.Start())
	r.services = append(r.services, s)
	s.profiles = fmt.Sprint(s.logged(ctx, "serving profiles")["addr"])
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConns, transport.MaxIdleConnsPerHost = 0, usual.perSecond // calls must not wait for connections
	s.admin = &client.Client{BaseURL: fmt.Sprint("http://", s.logged(ctx, "listening")["addr"]), AdminKey: r.adminKey, HTTP: &http.Client{Transport: transport}}
	until(ctx, func() error { return s.admin.Ready(ctx) })
	own := s.product(ctx, "bench", nil)
	s.Client, s.productID = own.Client, own.productID
	return s
}

// product registers a product and returns the service as that one calls it.
func (s *service) product(ctx context.Context, slug string, policy *client.Policy) *service {
	registered, other := must(s.admin.RegisterProduct(ctx, slug, slug, policy)), *s
	other.productID = registered.ProductID
	other.Client = &client.Client{BaseURL: s.admin.BaseURL, PlatformKey: registered.PlatformAPIKey, HTTP: s.admin.HTTP}
	return &other
}

// stop ends the process, and kills it when it takes too long.
func (s *service) stop() error {
	s.end()
	if err := s.cmd.Wait(); !s.cmd.ProcessState.Success() {
		return fmt.Errorf("a service process ended with %w; the end of its log:\n%s", err, s.tail())
	}
	return nil
}

// tail is the end of the log.
func (s *service) tail() string {
	text, _ := os.ReadFile(s.logFile)
	return string(text[max(0, len(text)-4096):])
}

// logged waits for the next line of the log, which is JSON, that contains all words, and
// returns its fields.
func (s *service) logged(ctx context.Context, words ...string) (fields map[string]any) {
	f := must(os.Open(s.logFile))
	defer func() { _ = f.Close() }()
	until(ctx, func() error {
		must(f.Seek(s.read, io.SeekStart))
		for lines := bufio.NewReader(f); ; {
			line, err := lines.ReadString('\n')
			if err != nil { // the end, for now
				return fmt.Errorf("the service has not logged %q: %w", words, err)
			}
			s.read += int64(len(line))
			if !slices.ContainsFunc(words, func(word string) bool { return !strings.Contains(line, word) }) {
				return json.Unmarshal([]byte(line), &fields)
			}
		}
	})
	return fields
}

// timed makes one call that is an operation on a user's engine, and records how long
// its caller waits and how long the service says that each step took.
func (s *service) timed(ctx context.Context, rec recorder, series string, call func(context.Context, string), user string) {
	id, w := strings.ToLower(rand.Text()), startWatch()
	call(client.WithRequestID(ctx, id), user)
	w.step("all")
	w.steps = stepsOf(s.logged(ctx, `"operation done"`, id))
	rec.operation(series, w, true)
}

// stepsOf picks the fields that are called <step>_ms.
func stepsOf(fields map[string]any) map[string]float64 {
	steps := map[string]float64{}
	for name, value := range fields {
		step, isStep := strings.CutSuffix(name, "_ms")
		if ms, isNumber := value.(float64); isStep && isNumber {
			steps[step] = ms
		}
	}
	return steps
}

// The operations on a user's engine.

func (s *service) provision(ctx context.Context, user string)   { must(s.Provision(ctx, user, "")) }
func (s *service) stopEngine(ctx context.Context, user string)  { must(s.Stop(ctx, user)) }
func (s *service) startEngine(ctx context.Context, user string) { must(s.Start(ctx, user)) }
func (s *service) rotateKey(ctx context.Context, user string)   { must(s.RotateKey(ctx, user)) }
func (s *service) destroy(ctx context.Context, user string)     { must(s.Destroy(ctx, user)) }

func (s *service) wake(ctx context.Context, user string) {
	if a := must(s.Admit(ctx, user, client.AdmitOptions{AutoWake: true})); !a.Admitted {
		check(errors.New("not admitted: " + a.Reason))
	}
}

// heapMiB is what the service's heap holds after a collection, in MiB.
func (s *service) heapMiB(ctx context.Context) float64 {
	text := get(ctx, "http://"+s.profiles+"/debug/pprof/heap?gc=1&debug=1")
	_, after, _ := strings.Cut(string(text), "# HeapAlloc = ")
	number, _, _ := strings.Cut(after, "\n")
	return must(strconv.ParseFloat(number, 64)) / (1 << 20)
}

// waiting waits until so many ready volumes and warm engines wait for users.
func (s *service) waiting(ctx context.Context, volumes, warm int) {
	until(ctx, func() error {
		status, err := s.admin.Whole(ctx)
		if err == nil && (status.PooledVolumes < volumes || status.WarmEngines < warm) {
			err = fmt.Errorf("%d of %d volumes and %d of %d warm engines are ready", status.PooledVolumes, volumes, status.WarmEngines, warm)
		}
		return err
	})
}
