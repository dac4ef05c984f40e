// Package fault ends or pauses this process at a named point, so that a test can show that
// nothing is lost between any two steps.
//
// Only an executable that is built with the tag faultpoints, as in tests, contains the
// points: it reads [Variable] when it starts. Without the tag, [Hit] does nothing and
// compiles to nothing.
package fault

// Variable is the environment variable that enables a point: when the process first reaches
// POINT, "kill POINT" ends it with SIGKILL, and "pause POINT" stops it with SIGSTOP. Any
// other value ends the process with exit code 2.
const Variable = "ORCH_FAULT"

// Tag is the build tag of an executable that contains the points.
const Tag = "faultpoints"
