package main

import (
	"bufio"
	"encoding/json"
	"io"
	"slices"
	"strings"
	"sync"
)

// doneMessage is the log line in which the service tells the times of an
// operation's steps (scheduler/operation.go).
const doneMessage = "operation done"

// passMessage is the log line in which it tells how long a pass of reconcile took
// (scheduler/reconcile/reconcile.go), at level debug.
const passMessage = "reconciled"

// logTail is how many lines of a service's log an error carries.
const logTail = 15

// serviceLog reads the JSON log of a service process.
type serviceLog struct {
	listening chan string // gets the address
	profiles  chan string // gets the address of the profiles

	mu      sync.Mutex
	last    []string
	waiting map[string]chan map[string]float64 // by request id
	passes  []float64                          // of reconcile, in milliseconds
}

func newServiceLog() *serviceLog {
	return &serviceLog{listening: make(chan string, 1), profiles: make(chan string, 1), waiting: map[string]chan map[string]float64{}}
}

// read ends when the process does.
func (l *serviceLog) read(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		l.note(lines.Bytes())
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long
}

func (l *serviceLog) note(line []byte) {
	var entry map[string]any
	_ = json.Unmarshal(line, &entry) // what is no JSON is kept for the tail
	text := func(name string) string { s, _ := entry[name].(string); return s }

	l.mu.Lock()
	defer l.mu.Unlock()
	l.last = append(l.last, string(line))
	if len(l.last) > logTail {
		l.last = l.last[1:]
	}
	switch text("@message") {
	case "serving profiles": // before it listens
		select {
		case l.profiles <- text("addr"):
		default:
		}
	case "listening":
		select {
		case l.listening <- text("addr"):
		default:
		}
	case doneMessage:
		if told := l.waiting[text("request_id")]; told != nil {
			delete(l.waiting, text("request_id"))
			told <- stepsOf(entry)
		}
	case passMessage:
		if ms, isNumber := entry["ms"].(float64); isNumber {
			l.passes = append(l.passes, ms)
		}
	}
}

// stepsOf picks the fields that are called <step>_ms.
func stepsOf(entry map[string]any) map[string]float64 {
	steps := map[string]float64{}
	for name, value := range entry {
		step, isStep := strings.CutSuffix(name, "_ms")
		if ms, isNumber := value.(float64); isStep && isNumber {
			steps[step] = ms
		}
	}
	return steps
}

// expect returns where the step times of a request's operation will be told.
func (l *serviceLog) expect(requestID string) <-chan map[string]float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := make(chan map[string]float64, 1)
	l.waiting[requestID] = told
	return told
}

// reconciled is how long each pass took so far, in milliseconds.
func (l *serviceLog) reconciled() []float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.passes)
}

func (l *serviceLog) tail() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.last, "\n")
}
