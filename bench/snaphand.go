//go:build linux

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"filippo.io/age"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
	"golang.org/x/sys/unix"

	"github.com/septemberai/orch/internal/devstack"
)

const (
	bucketName = "brains"
	accessKey  = "bench-access"
	// handPart is the size of the parts in which the stream is sent, the service's, too.
	handPart = 16 << 20
)

// shelf is a real S3 server, and ways to store a brain there without the service.
type shelf struct {
	*rig
	addr, secret string
	s3           *minio.Client
	identity     *age.X25519Identity
	keyFile      string
	restic       bool // it is installed
	n            int  // of names of objects and directories
}

// newShelf starts the S3 server. stop ends it.
func (r *rig) newShelf(ctx context.Context) (h *shelf, stop func()) {
	for _, program := range []string{"tar", "zstd", "age", "cp"} {
		must(exec.LookPath(program))
	}
	h = &shelf{rig: r, secret: r.adminKey, identity: must(age.GenerateX25519Identity()), keyFile: filepath.Join(r.dir, "age.key")}
	_, err := exec.LookPath("restic")
	h.restic = err == nil
	check(os.WriteFile(h.keyFile, []byte(h.identity.String()+"\n"), 0o600))
	dir := filepath.Join(r.dir, "s3")
	check(os.MkdirAll(filepath.Join(dir, bucketName), 0o755))
	l := must(net.Listen("tcp", "127.0.0.1:0"))
	h.addr = l.Addr().String()
	check(l.Close())
	server := exec.Command(must(devstack.Gateway(ctx, nil)), "--port", h.addr, "--quiet", "posix", dir)
	server.Env = append(os.Environ(), "ROOT_ACCESS_KEY="+accessKey, "ROOT_SECRET_KEY="+h.secret)
	server.SysProcAttr = childAttributes
	check(server.Start())
	stop = func() {
		_ = server.Process.Kill()
		_ = server.Wait() // it was killed
	}
	h.s3, err = minio.New(h.addr, &minio.Options{Creds: credentials.NewStaticV4(accessKey, h.secret, ""), Region: "us-east-1", BucketLookup: minio.BucketLookupPath})
	if err == nil {
		err = caught(func() {
			until(ctx, 20*time.Millisecond, func() error {
				resp, err := http.Get("http://" + h.addr + "/") //nolint:noctx // it is on loopback
				if err == nil {
					_ = resp.Body.Close()
				}
				return err
			})
		})
	}
	if err != nil {
		stop()
		check(err)
	}
	return h, stop
}

// vars is the configuration of a service whose snapshots are on the shelf.
func (h *shelf) vars() []string {
	return []string{
		"ORCH_SNAPSHOT_URL=s3://" + bucketName + "/orch?endpoint=http://" + h.addr + "&region=us-east-1",
		"ORCH_SNAPSHOT_ACCESS_KEY=" + accessKey, "ORCH_SNAPSHOT_SECRET_KEY=" + h.secret,
	}
}

// name returns a new name.
func (h *shelf) name() string {
	h.n++
	return fmt.Sprint("by-hand-", h.n)
}

// took flushes what earlier steps have written to the disk, and returns how long do takes.
func took(do func()) float64 {
	unix.Sync()
	w := startWatch()
	do()
	w.step("all")
	return w.total
}

// shell runs a command line with arguments $1, $2 and so on.
func shell(ctx context.Context, in io.Reader, out io.Writer, line string, args ...string) error {
	cmd := exec.CommandContext(ctx, "bash", append([]string{"-o", "pipefail", "-c", line, "bash"}, args...)...)
	cmd.SysProcAttr, cmd.Stdin, cmd.Stdout = childAttributes, in, out
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(complaint.String()))
	}
	return nil
}

// store packs a directory by tar, zstd and age, sends it to the S3 server, and returns the
// object's name.
func (h *shelf) store(ctx context.Context, dir string) string {
	name := h.name()
	from, to := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := shell(ctx, nil, to, `tar -C "$1" -c . | zstd -3 -T0 | age -r "$2"`, dir, h.identity.Recipient().String())
		packed <- errors.Join(err, to.CloseWithError(err))
	}()
	_, err := h.s3.PutObject(ctx, bucketName, name, from, -1, minio.PutObjectOptions{PartSize: handPart})
	_ = from.CloseWithError(err)
	check(errors.Join(err, <-packed))
	return name
}

// fetch unpacks an object into a new directory, and returns it.
func (h *shelf) fetch(ctx context.Context, object string) string {
	dir := filepath.Join(h.dir, h.name())
	check(os.Mkdir(dir, 0o755))
	from := must(h.s3.GetObject(ctx, bucketName, object, minio.GetObjectOptions{}))
	defer func() { _ = from.Close() }() // it was read to its end
	check(shell(ctx, from, nil, `age -d -i "$1" | zstd -d | tar -C "$2" -x -p`, h.keyFile, dir))
	return dir
}

// drop removes an object.
func (h *shelf) drop(ctx context.Context, object string) {
	check(h.s3.RemoveObject(ctx, bucketName, object, minio.RemoveObjectOptions{}))
}

// resticOf returns a new repository on the S3 server, in which nothing is stored yet.
func (h *shelf) resticOf(ctx context.Context) (repository string) {
	repository = "s3:http://" + h.addr + "/" + bucketName + "/" + h.name()
	h.runRestic(ctx, repository, "init")
	return repository
}

func (h *shelf) runRestic(ctx context.Context, repository string, args ...string) {
	command(ctx, "env", append([]string{
		"AWS_ACCESS_KEY_ID=" + accessKey, "AWS_SECRET_ACCESS_KEY=" + h.secret, "RESTIC_PASSWORD=bench", "RESTIC_REPOSITORY=" + repository,
		"restic", "--no-cache", "--quiet",
	}, args...)...)
}
