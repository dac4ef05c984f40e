//go:build !linux

package audit

import (
	"errors"
	"os"
)

func allocateBlocks(*os.File, int64) error { return errors.ErrUnsupported }

func allocateBeyond(*os.File, int64, int64) error { return errors.ErrUnsupported }
