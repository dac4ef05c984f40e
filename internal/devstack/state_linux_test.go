package devstack

import (
	"cmp"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

func TestStateDir(t *testing.T) {
	t.Run("WipesItsOwn", func(t *testing.T) {
		dir := t.TempDir()
		for range 2 {
			state, err := openState(t.Context(), dir)
			if err != nil {
				t.Fatal(err)
			}
			if entries, _ := os.ReadDir(dir); len(entries) != 1 {
				t.Errorf("%d entries after opening, want only the marker", len(entries))
			}
			if err := state.write(identity{ID: "none", Dir: dir, PID: os.Getpid()}); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, "old"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			state.close()
		}
	})
	t.Run("ErrNotOurs", func(t *testing.T) {
		dir := t.TempDir()
		precious := filepath.Join(dir, "precious")
		if err := os.WriteFile(precious, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := openState(t.Context(), dir)
		wantError(t, err, dir, "its files are not deleted")
		if _, err := os.Stat(precious); err != nil {
			t.Error(err)
		}
	})
	t.Run("ErrInUse", func(t *testing.T) {
		dir := t.TempDir()
		state, err := openState(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		defer state.close()
		if err := state.write(identity{ID: "none", Dir: dir, PID: os.Getpid()}); err != nil {
			t.Fatal(err)
		}
		_, err = openState(t.Context(), dir)
		wantError(t, err, "a stack is running in "+dir)
	})
}

// A failed start reports the reason and leaves nothing behind.
func TestStartErrors(t *testing.T) {
	script := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho 'no such flag'\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	bins := Binaries{Nomad: script, Consul: script, Vault: script}
	t.Run("ErrAgentExits", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "state")
		_, err := Start(t.Context(), Config{Dir: dir, Binaries: bins})
		wantError(t, err, "ended (exit status 3)", "no such flag")
		if _, err := os.Stat(dir); err == nil {
			t.Error("the state directory is still there")
		}
	})
	t.Run("ErrMissingBinary", func(t *testing.T) {
		none := filepath.Join(t.TempDir(), "none")
		_, err := Start(t.Context(), Config{Binaries: Binaries{Nomad: none, Consul: none, Vault: none}})
		wantError(t, err, none, "no such file")
	})
	t.Run("ErrPortTaken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		port := l.Addr().(*net.TCPAddr).Port
		_, err = Start(t.Context(), Config{Ports: Ports{Vault: port}, Binaries: bins})
		wantError(t, err, "which vault needs, is in use", EnvVaultPort)
	})
	t.Run("ErrNoDocker", func(t *testing.T) {
		socket := "unix://" + filepath.Join(t.TempDir(), "docker.sock")
		_, err := Start(t.Context(), Config{DockerSocket: socket, Binaries: bins})
		wantError(t, err, "no docker engine", socket, "DOCKER_HOST")
	})
	t.Run("ErrConfig", func(t *testing.T) {
		_, err := Start(t.Context(), Config{ExtraClients: 99, DynamicPorts: [2]int{9, 1}, DockerSocket: "tcp://x", CatalogDir: "/none", MemoryMB: -1})
		wantError(t, err, "ExtraClients", "DynamicPorts", "DockerSocket", "CatalogDir", "MemoryMB")
	})
}

func TestSlots(t *testing.T) {
	a, err := takeSlot()
	if err != nil {
		t.Fatal(err)
	}
	b, err := takeSlot()
	if err != nil {
		t.Fatal(err)
	}
	if a.base == b.base {
		t.Errorf("two stacks got the same ports from %d", a.base)
	}
	first := a.base
	a.release()
	c, err := takeSlot()
	if err != nil {
		t.Fatal(err)
	}
	if c.base > b.base && first < b.base {
		t.Errorf("slot %d was released and not taken again, got %d", first, c.base)
	}
	b.release()
	c.release()

	s := slot{base: 20000}
	got := s.dynamicPorts([2]int{100, 199}, 3)
	if want := [][2]int{{100, 132}, {133, 165}, {166, 198}}; !slices.Equal(got, want) {
		t.Errorf("ports 100 to 199 for 3 nodes: %v, want %v", got, want)
	}
	got = s.dynamicPorts([2]int{}, 1)
	if want := [][2]int{{20300, 20999}}; !slices.Equal(got, want) {
		t.Errorf("default ports: %v, want %v", got, want)
	}
	// If the ephemeral range covers all slots, all are used; otherwise those outside.
	if got := len(slotBases(1024, 65535)); got != slotCount {
		t.Errorf("%d slots, want all %d", got, slotCount)
	}
	if got := slotBases(13000, 60999); !slices.Equal(got, []int{12000}) {
		t.Errorf("slots %v, want 12000 alone", got)
	}
}

func TestUnescapeMount(t *testing.T) {
	if got, want := unescapeMount(`/a\040b\134c\0`), `/a b\c\0`; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
