package engine

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"syscall"
)

// maxNames limits the number of variables in one GET /env.
const maxNames = 64

// environment shows which variables are set, with a hash of each value, so that a test can
// verify that a provider key has reached the engine without reading the key.
func (s *server) environment(w http.ResponseWriter, r *http.Request) error {
	names := queryNames(r)
	if len(names) == 0 || len(names) > maxNames {
		return invalid(errors.New("names must list 1 to 64 variables, with commas between"))
	}
	type variable struct {
		Set    bool   `json:"set"`
		SHA256 string `json:"sha256,omitempty"`
	}
	vars := make(map[string]variable, len(names))
	for _, name := range names {
		value, set := s.cfg.Env(name)
		v := variable{Set: set}
		if set {
			h := sha256.Sum256([]byte(value))
			v.SHA256 = hex.EncodeToString(h[:])
		}
		vars[name] = v
	}
	writeJSON(w, http.StatusOK, map[string]any{"variables": vars})
	return nil
}

// maxCatalog limits the number of files in GET /catalog.
const maxCatalog = 1000

// catalog lists the shared files, and whether the engine could change them, which it must
// not be able to do.
func (s *server) catalog(w http.ResponseWriter, _ *http.Request) error {
	type file struct {
		Name string `json:"name"`
		Size int64  `json:"size"`
	}
	files, dir := []file{}, s.cfg.CatalogDir
	if dir != "" {
		err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			files = append(files, file{path, info.Size()})
			if len(files) == maxCatalog {
				return fs.SkipAll
			}
			return nil
		})
		if err != nil {
			s.log.Error("cannot list the catalog", "err", err)
			return &apiError{http.StatusServiceUnavailable, "CATALOG_UNAVAILABLE", "the catalog cannot be read"}
		}
	}
	const wOK = 2 // access(2)'s W_OK
	writeJSON(w, http.StatusOK, map[string]any{
		"files":    files,
		"writable": dir != "" && syscall.Access(dir, wOK) == nil,
	})
	return nil
}
