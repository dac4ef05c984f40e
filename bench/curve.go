package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// curveMain measures the scale curve and returns the exit code.
func curveMain(engines, profiles string) int {
	levels, err := parseLevels(engines)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 2
	}
	if profiles != "" {
		if err := os.MkdirAll(profiles, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			return 1
		}
	}
	inside, code, err := enterCurve()
	if err == nil && !inside {
		return code
	}
	if err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
		context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for the clean-up
		err = runCurve(ctx, levels, profiles)
		stop()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

// parseLevels reads numbers of engines, which must ascend.
func parseLevels(list string) ([]int, error) {
	var levels []int
	for part := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(part)
		if err != nil || n < 100 || len(levels) > 0 && n <= levels[len(levels)-1] {
			return nil, fmt.Errorf("-engines: want ascending numbers of 100 or more, as in 100,1000")
		}
		levels = append(levels, n)
	}
	return slices.Clip(levels), nil
}
